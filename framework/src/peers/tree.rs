//! A sum of parts in pairs: neighbours first, then neighbouring pairs, and so on. The order of additions depends
//! on the number of parts alone, not on who has them.

use std::ops::Range;

use candle_core::{Device, Tensor};

use super::Peers;
use super::sums::{Part, add_up, sum};
use crate::Result;

/// Parts that are added up as they come: whoever has both sides of a pair adds them at once.
#[derive(Default)]
pub(crate) struct Tree {
    /// Sums of parts that stand side by side, by their numbers.
    sums: Vec<(Range<usize>, Part)>,
}

impl Tree {
    /// Adds the part of this number; they come in their order.
    pub(crate) fn add(&mut self, number: usize, part: Part) -> Result<()> {
        self.join(number..number + 1, part)
    }

    /// Adds a sum of the parts of these numbers.
    fn join(&mut self, mut range: Range<usize>, mut part: Part) -> Result<()> {
        while let Some((before, sums)) = self.sums.pop_if(|(before, _)| are_pair(before, &range)) {
            part = pairwise(sums, part)?;
            range = before.start..range.end;
        }
        self.sums.push((range, part));
        Ok(())
    }

    /// The sum of all `count` parts of all processes, on each.
    pub(crate) fn finish(self, peers: &dyn Peers, count: usize, device: &Device) -> Result<Part> {
        let ranges = (0..peers.size()).flat_map(|rank| held(peers.size(), rank, count));
        let ranges: Vec<Range<usize>> = ranges.collect();
        let in_pairs = |_: Option<Tensor>, parts: Vec<Vec<Option<Tensor>>>| {
            let mut held: Vec<_> = ranges.iter().zip(parts.into_iter().flatten()).collect();
            held.sort_by_key(|(range, _)| range.start);
            let mut tree = Self::default();
            for (range, tensor) in held {
                tree.join(range.clone(), vec![tensor])?;
            }
            // Where the number of parts is no power of two, the last have found no partner.
            let mut sums = tree.sums.into_iter().rev().map(|(_, part)| part);
            let last = sums.next().unwrap_or_default();
            let whole = sums.try_fold(last, |whole, before| pairwise(before, whole))?;
            Ok(whole.into_iter().next().flatten())
        };
        let own = self.sums.into_iter().map(|(_, part)| part).collect();
        add_up(peers, Vec::new(), own, &in_pairs, device)
    }
}

fn pairwise(one: Part, other: Part) -> Result<Part> {
    one.into_iter().zip(other).map(|(one, other)| sum(one, other)).collect()
}

/// Whether two sums of parts are of as many, side by side, and the left one begins where a pair of them does.
fn are_pair(one: &Range<usize>, other: &Range<usize>) -> bool {
    one.end == other.start && one.len() == other.len() && one.start.is_multiple_of(2 * one.len())
}

/// The numbers of the parts that each of a process's sums is of.
fn held(size: usize, rank: usize, count: usize) -> Vec<Range<usize>> {
    let mut held: Vec<Range<usize>> = Vec::new();
    for number in (rank..count).step_by(size) {
        let mut range = number..number + 1;
        while let Some(before) = held.pop_if(|before| are_pair(before, &range)) {
            range = before.start..range.end;
        }
        held.push(range);
    }
    held
}
