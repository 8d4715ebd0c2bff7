//! Changing GGUF files: the counts, lengths, types and values that its head is made of.

use std::ops::Range;

use super::{Random, bytes};

/// Changes a GGUF file.
pub fn mutate(random: &mut Random, file: &[u8], others: &[Vec<u8>]) -> Vec<u8> {
    let mut walk = Walk { file, at: 0, fields: Vec::new() };
    // As far as it goes: a file that was cut short has fields too.
    let _ = walk.head();
    let head = walk.at;
    if walk.fields.is_empty() || random.one_in(5) {
        return bytes(random, file, others);
    }
    let mut changed = file.to_vec();
    for _ in 0..1 + random.below(2) {
        let field = random.choose(&walk.fields).clone();
        let number = match random.below(3) {
            0 => random.below(20) as i64,
            _ => random.integer(),
        };
        changed.splice(field.clone(), number.to_le_bytes()[..field.len()].iter().copied());
    }
    if random.one_in(4) {
        let new = bytes(random, &changed[..head], others);
        changed.splice(..head, new);
    }
    changed
}

/// A walk through the head of a file, which notes where its numbers stand.
struct Walk<'f> {
    file: &'f [u8],
    at: usize,
    fields: Vec<Range<usize>>,
}

impl Walk<'_> {
    /// The next number of so many bytes.
    fn number(&mut self, width: usize) -> Option<u64> {
        let range = self.at..self.at + width;
        let part = self.file.get(range.clone())?;
        self.fields.push(range);
        self.at += width;
        let mut bytes = [0; 8];
        bytes.get_mut(..width)?.copy_from_slice(part);
        Some(u64::from_le_bytes(bytes))
    }

    fn text(&mut self) -> Option<()> {
        let length = self.number(8)?;
        self.at = self.at.checked_add(usize::try_from(length).ok()?)?;
        (self.at <= self.file.len()).then_some(())
    }

    fn head(&mut self) -> Option<()> {
        self.at = 4;
        self.number(4)?;
        let (tensors, entries) = (self.number(8)?, self.number(8)?);
        for _ in 0..entries {
            self.text()?;
            let kind = self.number(4)?;
            self.value(kind)?;
        }
        for _ in 0..tensors {
            self.text()?;
            for _ in 0..self.number(4)? {
                self.number(8)?;
            }
            self.number(4)?;
            self.number(8)?;
        }
        Some(())
    }

    fn value(&mut self, kind: u64) -> Option<()> {
        match kind {
            0 | 1 | 7 => self.number(1).map(drop),
            2 | 3 => self.number(2).map(drop),
            4..=6 => self.number(4).map(drop),
            8 => self.text(),
            9 => {
                let kind = self.number(4)?;
                (0..self.number(8)?).try_for_each(|_| self.value(kind))
            }
            _ => self.number(8).map(drop),
        }
    }
}
