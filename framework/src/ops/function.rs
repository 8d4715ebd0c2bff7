//! A tensor with a hand-written gradient: candle's counterpart to `torch.autograd.Function`. The
//! forward value is computed first, on tensors that track nothing; these functions then join it to
//! the inputs with a closure that pulls gradients back.

use std::ops::Deref;
use std::sync::{Mutex, PoisonError};

use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, DType, InplaceOp1, Layout, Result, Shape, Storage, Tensor,
    bail,
};

/// `output`, whose gradient reaches `input` through `backward` (∂L/∂output → ∂L/∂input).
pub(crate) fn differentiable(
    input: &Tensor,
    output: Tensor,
    backward: impl Fn(&Tensor) -> Result<Tensor> + Send + Sync + 'static,
) -> Result<Tensor> {
    if !input.track_op() {
        return Ok(output);
    }
    let backward = move |gradient: &Tensor| Ok([backward(gradient)?]);
    input.apply_op1(Function::new(output, backward)?)
}

/// `output`, whose gradient reaches both inputs through `backward`.
pub(crate) fn differentiable2(
    inputs: [&Tensor; 2],
    output: Tensor,
    backward: impl Fn(&Tensor) -> Result<[Tensor; 2]> + Send + Sync + 'static,
) -> Result<Tensor> {
    if !inputs.iter().any(|input| input.track_op()) {
        return Ok(output);
    }
    inputs[0].apply_op2(inputs[1], Function::new(output, backward)?)
}

struct Function<B> {
    /// The value computed beforehand; taken, not copied, when candle asks for it.
    output: Mutex<Option<CpuStorage>>,
    shape: Shape,
    backward: B,
}

impl<B> Function<B> {
    fn new(output: Tensor, backward: B) -> Result<Self> {
        let shape = output.shape().clone();
        let output = output.contiguous()?;
        let whole = {
            let (storage, layout) = output.storage_and_layout();
            match &*storage {
                Storage::Cpu(CpuStorage::F32(data)) => {
                    layout.start_offset() == 0 && data.len() == shape.elem_count()
                }
                _ => bail!("this operation computes in float32 on the CPU only"),
            }
        };
        let output = if whole { output } else { output.copy()? };
        let taken = Take::default();
        output.inplace_op1(&taken)?;
        Ok(Self { output: taken.0, shape, backward })
    }

    fn value(&self) -> Result<(CpuStorage, Shape)> {
        let value = self.output.lock().unwrap_or_else(PoisonError::into_inner).take();
        match value {
            Some(storage) => Ok((storage, self.shape.clone())),
            None => bail!("a function's value is taken once"),
        }
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
    B: Fn(&Tensor) -> Result<[Tensor; 1]> + Send + Sync,
{
    fn name(&self) -> &'static str {
        "function"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.value()
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let [input] = (self.backward)(&gradient.contiguous()?)?;
        Ok(Some(input))
    }
}

impl<B> CustomOp2 for Function<B>
where
    B: Fn(&Tensor) -> Result<[Tensor; 2]> + Send + Sync,
{
    fn name(&self) -> &'static str {
        "function of two"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.value()
    }

    fn bwd(
        &self,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [first, second] = (self.backward)(&gradient.contiguous()?)?;
        Ok((Some(first), Some(second)))
    }
}

/// The values of a contiguous float32 CPU tensor.
struct F32s<G> {
    /// The lock on the tensor's storage.
    storage: G,
    start: usize,
    len: usize,
}

/// Borrows a tensor's values; the tensor must be contiguous, float32 and on the CPU.
pub(crate) fn contiguous_f32(tensor: &Tensor) -> Result<impl Deref<Target = [f32]> + '_> {
    if tensor.dtype() != DType::F32 || !tensor.is_contiguous() || !tensor.device().is_cpu() {
        bail!(
            "expected a contiguous float32 tensor on the CPU, got {:?} {:?}",
            tensor.dtype(),
            tensor.layout()
        );
    }
    let (storage, layout) = tensor.storage_and_layout();
    Ok(F32s { storage, start: layout.start_offset(), len: tensor.elem_count() })
}

impl<G: Deref<Target = Storage>> Deref for F32s<G> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match &*self.storage {
            Storage::Cpu(CpuStorage::F32(data)) => &data[self.start..self.start + self.len],
            // `contiguous_f32` has checked the type and the device.
            _ => &[],
        }
    }
}
