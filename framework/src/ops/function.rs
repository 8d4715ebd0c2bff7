//! A tensor with a hand-written gradient: candle's counterpart to `torch.autograd.Function`. The
//! forward value is computed first, on tensors that track nothing; these functions then join it to
//! the input with a closure that pulls gradients back. Also here: how an operation reads a tensor's
//! values, and changes them in place.

use std::marker::PhantomData;
use std::ops::Deref;
use std::sync::{Mutex, PoisonError};

use candle_core::backend::BackendStorage;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, InplaceOp1, Layout, Result, Shape, Storage, Tensor,
    WithDType, bail,
};

use super::Real;

/// `output`, whose gradient reaches `input` through `backward` (∂L/∂output → ∂L/∂input).
pub(crate) fn differentiable(
    input: &Tensor,
    output: Tensor,
    backward: impl Fn(&Tensor) -> Result<Tensor> + Send + Sync + 'static,
) -> Result<Tensor> {
    if !input.track_op() {
        return Ok(output);
    }
    input.apply_op1(Function::new(output, backward)?)
}

struct Function<B> {
    output: Output,
    shape: Shape,
    backward: B,
}

/// The value computed beforehand.
enum Output {
    /// Taken, not copied, when candle asks for it.
    Cpu(Mutex<Option<CpuStorage>>),
    Cuda(Tensor),
}

impl<B> Function<B> {
    fn new(output: Tensor, backward: B) -> Result<Self> {
        let shape = output.shape().clone();
        let output = output.contiguous()?;
        if !output.device().is_cpu() {
            return Ok(Self { output: Output::Cuda(output), shape, backward });
        }
        let whole = {
            let (storage, layout) = output.storage_and_layout();
            let length = match &*storage {
                Storage::Cpu(CpuStorage::F32(data)) => data.len(),
                Storage::Cpu(CpuStorage::F64(data)) => data.len(),
                _ => bail!("operations compute in float32 or float64"),
            };
            length == shape.elem_count() && layout.start_offset() == 0
        };
        let output = if whole { output } else { output.copy()? };
        let taken = Take::default();
        output.inplace_op1(&taken)?;
        Ok(Self { output: Output::Cpu(taken.0), shape, backward })
    }
}

/// Moves a tensor's storage out, leaving it empty.
#[derive(Default)]
struct Take(Mutex<Option<CpuStorage>>);

impl InplaceOp1 for Take {
    fn name(&self) -> &'static str {
        "take"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, _: &Layout) -> Result<()> {
        let taken = std::mem::replace(storage, CpuStorage::F32(Vec::new()));
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(taken);
        Ok(())
    }
}

impl<B> CustomOp1 for Function<B>
where
    B: Fn(&Tensor) -> Result<Tensor> + Send + Sync,
{
    fn name(&self) -> &'static str {
        "function"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        let taken = match &self.output {
            Output::Cpu(output) => output.lock().unwrap_or_else(PoisonError::into_inner).take(),
            Output::Cuda(_) => None,
        };
        match taken {
            Some(storage) => Ok((storage, self.shape.clone())),
            None => bail!("a function's value is taken once, on its own device"),
        }
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        if let Output::Cuda(output) = &self.output
            && let (storage, layout) = output.storage_and_layout()
            && let Storage::Cuda(storage) = &*storage
        {
            return Ok((storage.try_clone(layout)?, self.shape.clone()));
        }
        bail!("a function's value is not on this GPU")
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some((self.backward)(&gradient.contiguous()?)?))
    }
}

/// Changes the values of a contiguous tensor on the CPU where they are, for whoever shares them too.
pub(crate) fn in_place<T: Real>(
    tensor: &Tensor,
    change: impl Fn(&mut [T]) -> Result<()>,
) -> Result<()> {
    if !tensor.is_contiguous() {
        bail!("expected a contiguous tensor, got {:?}", tensor.layout());
    }
    tensor.inplace_op1(&Change { change, of: PhantomData })
}

struct Change<F, T> {
    change: F,
    of: PhantomData<T>,
}

impl<T: Real, F: Fn(&mut [T]) -> Result<()>> InplaceOp1 for Change<F, T> {
    fn name(&self) -> &'static str {
        "change in place"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let of = layout.start_offset()..layout.start_offset() + layout.shape().elem_count();
        match T::values_of(storage) {
            Some(values) => (self.change)(&mut values[of]),
            None => bail!("expected {:?} values", T::DTYPE),
        }
    }
}

/// The values of a contiguous CPU tensor.
struct Values<G, T> {
    /// The lock on the tensor's storage.
    storage: G,
    start: usize,
    len: usize,
    of: PhantomData<T>,
}

/// Borrows a tensor's values; the tensor must be contiguous, of type `T` and on the CPU.
pub(crate) fn values<T: WithDType>(
    tensor: &Tensor,
) -> Result<impl Deref<Target = [T]> + Sync + '_> {
    if tensor.dtype() != T::DTYPE || !tensor.is_contiguous() || !tensor.device().is_cpu() {
        bail!(
            "expected a contiguous {:?} tensor on the CPU, got {:?} {:?}",
            T::DTYPE,
            tensor.dtype(),
            tensor.layout()
        );
    }
    let (storage, layout) = tensor.storage_and_layout();
    let (start, len) = (layout.start_offset(), tensor.elem_count());
    Ok(Values { storage, start, len, of: PhantomData })
}

impl<T: WithDType, G: Deref<Target = Storage>> Deref for Values<G, T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // `values` has checked the type and the device.
        match &*self.storage {
            Storage::Cpu(data) => {
                T::cpu_storage_as_slice(data).map_or(&[], |data| &data[self.start..][..self.len])
            }
            _ => &[],
        }
    }
}

/// Runs an expression with `T` standing for the tensor's type, float32 or float64.
macro_rules! by_dtype {
    ($tensor:expr, $T:ident => $run:expr) => {
        match $tensor.dtype() {
            candle_core::DType::F32 => {
                type $T = f32;
                $run
            }
            candle_core::DType::F64 => {
                type $T = f64;
                $run
            }
            other => candle_core::bail!("operations compute in float32 or float64, not {other:?}"),
        }
    };
}
pub(crate) use by_dtype;
