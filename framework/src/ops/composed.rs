//! Where operations are composed of candle's own, which candle differentiates: on a GPU, and where the
//! fused ones are held to them. Each operation's composed form stands in its own file. They are slower on
//! the CPU, and each step of them is a tensor in memory.

use std::cell::Cell;

use candle_core::{Error, Result, Tensor, Var};

thread_local! {
    static EVERYWHERE: Cell<bool> = const { Cell::new(false) };
}

/// Runs `f` with the composed operations on the CPU too, on this thread: so what runs on a GPU can be
/// checked where there is none.
pub fn everywhere<R>(f: impl FnOnce() -> R) -> R {
    let before = EVERYWHERE.replace(true);
    let result = f();
    EVERYWHERE.set(before);
    result
}

/// Whether the fused operations work on this tensor.
pub(crate) fn is_fused(tensor: &Tensor) -> bool {
    tensor.device().is_cpu() && !EVERYWHERE.get()
}

/// The gradient at x of Σ gradient ⊙ f(x).
pub(super) fn pull_back(
    x: &Tensor,
    gradient: &Tensor,
    f: impl FnOnce(&Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    let x = Var::from_tensor(&x.detach())?;
    let sum = (f(x.as_tensor())? * gradient)?.sum_all()?;
    let mut gradients = sum.backward()?;
    gradients.remove(&x).ok_or_else(|| Error::Msg("no gradient comes back".to_owned()))
}

/// What a rule takes for a constant, or not.
pub(super) fn held(factor: Tensor, is_constant: bool) -> Tensor {
    if is_constant { factor.detach() } else { factor }
}
