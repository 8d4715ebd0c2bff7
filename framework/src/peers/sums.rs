//! Sums of tensors over processes. Each process adds up a slice of every tensor, of all processes' parts in
//! their order, and gives the sum to the others: what one process sends is about twice a part, however many
//! processes there are.

use std::ops::Range;

use candle_core::{DType, Device, Tensor};
use safetensors::Dtype;

use super::{Peers, give_all};
use crate::ops::{Real, by_dtype, values};
use crate::{Error, Result};

/// The tensors that a batch gave; none where it has nothing to add.
pub(crate) type Part = Vec<Option<Tensor>>;

/// Bytes of tensors that are exchanged at once.
const AT_ONCE: usize = 4 << 20;

/// Adds, of one tensor, what there was before and what each process has, all in pieces of equal shape.
pub(super) type Add<'a> =
    dyn Fn(Option<Tensor>, Vec<Vec<Option<Tensor>>>) -> Result<Option<Tensor>> + 'a;

/// The sum of two tensors that need not be there.
pub(super) fn sum(one: Option<Tensor>, other: Option<Tensor>) -> Result<Option<Tensor>> {
    Ok(match (one, other) {
        (Some(one), Some(other)) => Some((one + other)?),
        (one, other) => one.or(other),
    })
}

/// Sums over batches that are dealt to the processes one by one. A round is a batch of each process, and sums
/// are formed round by round: what is not yet added is a batch's of each.
pub(crate) struct Rounds<'a> {
    pub(crate) peers: &'a dyn Peers,
    /// How many there are; of a single process's there may be any number.
    pub(crate) batches: usize,
    made: usize,
}

impl<'a> Rounds<'a> {
    pub(crate) fn new(peers: &'a dyn Peers, batches: usize) -> Self {
        Self { peers, batches, made: 0 }
    }

    /// A new count of the same batches.
    pub(crate) fn anew(&self) -> Self {
        Self::new(self.peers, self.batches)
    }

    /// Counts a round.
    pub(crate) fn next(&mut self) {
        self.made += 1;
    }

    /// Whether there are rounds left that other processes still have a batch in, or this one.
    pub(crate) fn are_left(&self) -> bool {
        self.made < self.batches.div_ceil(self.peers.size())
    }

    /// Makes a round: adds to `before`, which all processes have, the part of each, in the batches' order.
    pub(crate) fn add(&mut self, before: Part, own: Part, device: &Device) -> Result<Part> {
        self.next();
        let in_order = |before: Option<Tensor>, parts: Vec<Vec<Option<Tensor>>>| {
            parts.into_iter().flatten().try_fold(before, sum)
        };
        add_up(self.peers, before, vec![own], &in_order, device)
    }
}

/// A tensor's type and shape.
type Layout = Option<(Dtype, Vec<usize>)>;

/// Adds up all processes' parts to what was before, which all have.
pub(super) fn add_up(
    peers: &dyn Peers,
    mut before: Part,
    own: Vec<Part>,
    add: &Add,
    device: &Device,
) -> Result<Part> {
    if peers.size() == 1 {
        let tensors = own.iter().map(Vec::len).chain([before.len()]).max().unwrap_or(0);
        before.resize(tensors, None);
        let mut own: Vec<_> = own.into_iter().map(Vec::into_iter).collect();
        let of =
            |before| add(before, vec![own.iter_mut().map(|part| part.next().flatten()).collect()]);
        return before.into_iter().map(of).collect();
    }
    let layout = |tensor: &Tensor| -> Result<(Dtype, Vec<usize>)> {
        Ok((tensor.dtype().into(), tensor.dims().to_vec()))
    };
    let layouts: Vec<Vec<Layout>> = (own.iter())
        .map(|part| part.iter().map(|tensor| tensor.as_ref().map(layout).transpose()).collect())
        .collect::<Result<_>>()?;
    let unreadable =
        |error| Error::input(format!("another process gave what can't be read: {error}"));
    let bytes = serde_json::to_vec(&layouts).map_err(unreadable)?;
    let all = Exchange {
        peers,
        device,
        own: &own,
        layouts: (give_all(peers, &bytes)?.iter())
            .map(|bytes| serde_json::from_slice(bytes).map_err(unreadable))
            .collect::<Result<_>>()?,
    };
    let parts = all.layouts.iter().flatten().map(Vec::len);
    let tensors = parts.chain([before.len()]).max().unwrap_or(0);
    before.resize(tensors, None);
    let mut sums = Vec::new();
    let mut start = 0;
    while start < tensors {
        let (mut end, mut bytes) = (start, 0);
        while end < tensors && (end == start || bytes < AT_ONCE) {
            bytes += all.layout(end).map_or(0, |(dtype, shape)| size(*dtype, shape));
            end += 1;
        }
        sums.extend(all.add(&mut before, start..end, add)?);
        start = end;
    }
    Ok(sums)
}

/// What processes have and one of them gives.
struct Exchange<'a> {
    peers: &'a dyn Peers,
    device: &'a Device,
    own: &'a [Part],
    /// By process, part and tensor.
    layouts: Vec<Vec<Vec<Layout>>>,
}

impl Exchange<'_> {
    /// The layout of a tensor, which is the same wherever it is there.
    fn layout(&self, tensor: usize) -> Option<&(Dtype, Vec<usize>)> {
        self.layouts.iter().flatten().find_map(|part| part.get(tensor)?.as_ref())
    }

    /// The elements of a tensor that a process adds up.
    fn slice(&self, rank: usize, shape: &[usize]) -> Range<usize> {
        let (count, size) = (shape.iter().product::<usize>(), self.peers.size());
        count * rank / size..count * (rank + 1) / size
    }

    /// The elements of one of this process's tensors that a process adds up.
    fn piece(&self, values: &Tensor, rank: usize) -> Result<Tensor> {
        let slice = self.slice(rank, values.dims());
        Ok(values.flatten_all()?.narrow(0, slice.start, slice.len())?.to_device(&Device::Cpu)?)
    }

    /// Sums of some tensors.
    fn add(&self, before: &mut Part, tensors: Range<usize>, add: &Add) -> Result<Part> {
        let own = self.peers.rank();
        let others = |rank: &usize| *rank != own;
        let mut given = vec![Vec::new(); self.peers.size()];
        for values in tensors.clone().flat_map(|tensor| self.own_parts(tensor)).flatten() {
            for rank in (0..given.len()).filter(others) {
                append(&mut given[rank], &self.piece(values, rank)?)?;
            }
        }
        let received = self.swap(given)?;
        let mut rest: Vec<&[u8]> = received.iter().map(|bytes| &bytes[..]).collect();
        let (mut sums, mut bytes) = (Vec::new(), Vec::new());
        for tensor in tensors.clone() {
            let Some((dtype, shape)) = self.layout(tensor) else { continue };
            let slice = self.slice(own, shape);
            let mut parts = Vec::new();
            for (rank, rest) in rest.iter_mut().enumerate() {
                parts.push(match rank == own {
                    true => (self.own_parts(tensor))
                        .map(|values| values.map(|values| self.piece(values, own)).transpose())
                        .collect::<Result<Vec<_>>>()?,
                    false => (self.layouts[rank].iter())
                        .map(|part| match part.get(tensor) {
                            Some(Some(_)) => taken(rest, *dtype, &[slice.len()]).map(Some),
                            _ => Ok(None),
                        })
                        .collect::<Result<Vec<_>>>()?,
                });
            }
            let before =
                before[tensor].as_ref().map(|before| self.piece(before, own)).transpose()?;
            let sum = add(before, parts)?;
            if let Some(sum) = &sum {
                append(&mut bytes, &sum.contiguous()?)?;
            }
            sums.push(sum);
        }
        let given = (0..self.peers.size()).map(|rank| if rank == own { &[][..] } else { &bytes });
        let received = self.peers.swap(&given.collect::<Vec<_>>())?;
        let mut rest: Vec<&[u8]> = received.iter().map(|bytes| &bytes[..]).collect();
        let (mut whole, mut sums) = (Vec::new(), sums.into_iter());
        for tensor in tensors {
            let Some((dtype, shape)) = self.layout(tensor) else {
                whole.push(before[tensor].take());
                continue;
            };
            let sum = sums.next().flatten();
            let sum = match dtype {
                Dtype::F64 => self.join::<f64>(sum.as_ref(), shape, &mut rest)?,
                _ => self.join::<f32>(sum.as_ref(), shape, &mut rest)?,
            };
            whole.push(Some(sum.to_device(self.device)?));
        }
        Ok(whole)
    }

    /// A tensor of this shape, of the slices that each process added up: this one's, and the others' off the
    /// front of their bytes.
    fn join<T: Real>(
        &self,
        own: Option<&Tensor>,
        shape: &[usize],
        rest: &mut [&[u8]],
    ) -> Result<Tensor> {
        let mut whole = Vec::with_capacity(shape.iter().product());
        for (rank, rest) in rest.iter_mut().enumerate() {
            match own.filter(|_| rank == self.peers.rank()) {
                Some(own) => whole.extend_from_slice(&values::<T>(own)?),
                None => {
                    let bytes = front(rest, self.slice(rank, shape).len() * size_of::<T>())?;
                    let values = bytes.chunks_exact(size_of::<T>());
                    whole.extend(values.map(bytemuck::pod_read_unaligned::<T>));
                }
            }
        }
        Ok(Tensor::from_vec(whole, shape, &Device::Cpu)?)
    }

    /// What each of this process's parts has of a tensor.
    fn own_parts(&self, tensor: usize) -> impl Iterator<Item = Option<&Tensor>> {
        self.own.iter().map(move |part| part.get(tensor)?.as_ref())
    }

    /// Gives each other process its bytes.
    fn swap(&self, given: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>> {
        self.peers.swap(&given.iter().map(|bytes| &bytes[..]).collect::<Vec<_>>())
    }
}

/// Bytes of a tensor.
fn size(dtype: Dtype, shape: &[usize]) -> usize {
    shape.iter().product::<usize>() * dtype.bitsize() / 8
}

/// Appends the bytes of a contiguous tensor on the CPU.
fn append(bytes: &mut Vec<u8>, tensor: &Tensor) -> candle_core::Result<()> {
    by_dtype!(tensor, T => bytes.extend_from_slice(bytemuck::cast_slice(&values::<T>(tensor)?)));
    Ok(())
}

/// Takes so many bytes off the front.
fn front<'b>(bytes: &mut &'b [u8], count: usize) -> Result<&'b [u8]> {
    let (front, rest) = bytes.split_at_checked(count).ok_or_else(|| {
        Error::input(
            "another process gave less than was to be added; start the same program on all",
        )
    })?;
    *bytes = rest;
    Ok(front)
}

/// Takes a tensor off the front of bytes.
fn taken(bytes: &mut &[u8], dtype: Dtype, shape: &[usize]) -> Result<Tensor> {
    let own = front(bytes, size(dtype, shape))?;
    Ok(Tensor::from_raw_buffer(own, DType::try_from(dtype)?, shape, &Device::Cpu)?)
}
