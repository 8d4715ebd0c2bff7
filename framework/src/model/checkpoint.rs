//! What a model is built from: a configuration, and weights that are read from files, or drawn, one
//! at a time as the architecture asks for them. The file formats are not the framework's.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use half::bf16;
use num_traits::Float;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;
use rayon::prelude::*;

use crate::ops::{values, weight};
use crate::weights::layout::{FileTensor, assemble};
use crate::{Result, refuse};

/// What a registered architecture is built from: the content of a checkpoint, whichever file
/// format it came in.
pub struct Checkpoint {
    /// Hugging Face's config.json.
    pub config: serde_json::Value,
    pub weights: Weights,
    /// float32 or float64, what the model computes in, or bfloat16 for float32 with matrices kept in
    /// bfloat16.
    pub dtype: DType,
    /// The device that the model computes on.
    pub device: Device,
    /// What messages call it: its file or folder.
    pub origin: String,
}

/// Where an architecture's weights come from.
pub enum Weights {
    /// By Hugging Face's names.
    Stored(BTreeMap<String, Stored>),
    /// Drawn with this seed: matrices from N(0, 0.02²), norms one, biases zero. What a tensor holds
    /// depends on the seed and its name alone.
    Random(u64),
    /// Zeros, float32, which take no memory before they are written: of a model whose shapes alone matter.
    Absent,
}

/// A tensor in a file.
pub struct Stored {
    pub shape: Vec<usize>,
    /// Reads it on the CPU, in whatever floating-point type the file has. A model is loaded tensor
    /// by tensor, so that no second copy of it is in memory.
    pub read: Box<dyn FnOnce() -> Result<Tensor> + Send>,
}

/// The standard deviation of random matrices, GPT-2's and Llama's `initializer_range`.
const INITIALIZER_RANGE: f32 = 0.02;

/// Random values that are drawn in one go by one thread.
const CHUNK: usize = 1 << 16;

impl Checkpoint {
    /// Takes a tensor out, or draws it.
    ///
    /// # Errors
    /// If it is missing, its shape is another, or it holds a value that isn't finite, naming it.
    pub fn take(&mut self, name: &str, shape: &[usize]) -> Result<Tensor> {
        // Vectors are small, and sums of them lose what bfloat16 does not hold.
        let dtype = if shape.len() > 1 { self.dtype } else { weight::computing(self.dtype) };
        let tensors = match &mut self.weights {
            Weights::Stored(tensors) => tensors,
            Weights::Random(seed) => {
                return Ok(draw(name, shape, *seed)?.to_dtype(dtype)?.to_device(&self.device)?);
            }
            Weights::Absent => return Ok(Tensor::zeros(shape, DType::F32, &Device::Cpu)?),
        };
        let Some(Stored { shape: stored, read }) = tensors.remove(name) else {
            refuse!("{}: there is no tensor `{name}`", self.origin);
        };
        if stored != shape {
            refuse!(
                "{}: tensor `{name}` is {stored:?}, but config.json says {shape:?}",
                self.origin
            );
        }
        let tensor = read()?.to_dtype(dtype)?;
        if !is_finite(&tensor)? {
            refuse!(
                "{}: tensor `{name}` holds a value that is not finite; weights must be numbers",
                self.origin
            );
        }
        Ok(tensor.to_device(&self.device)?)
    }

    /// Takes out the tensors that hold a parameter [rows, width] of so many columns.
    ///
    /// # Errors
    /// As [`Checkpoint::take`]'s.
    pub fn take_parameter(&mut self, files: &[FileTensor], width: usize) -> Result<Tensor> {
        if let Weights::Absent = self.weights {
            let rows = files.iter().flat_map(|file| &file.rows).map(|rows| rows.end).max();
            return Ok(Tensor::zeros((rows.unwrap_or(0), width), DType::F32, &Device::Cpu)?);
        }
        let tensors = files.iter().map(|file| self.take(&file.name, &file.shape(width)));
        assemble(files, &tensors.collect::<Result<Vec<_>>>()?, width)
    }

    /// Takes out a tensor that some files hold though the model has another one, `twin`, in its
    /// place: a tied unembedding.
    ///
    /// # Errors
    /// If its values are not the twin's.
    pub fn take_twin(&mut self, name: &str, twin: &Tensor) -> Result<()> {
        match &self.weights {
            Weights::Stored(tensors) if tensors.contains_key(name) => {}
            _ => return Ok(()),
        }
        let differing = self.take(name, twin.dims())?.ne(twin)?.to_dtype(DType::F32)?;
        if differing.max_all()?.to_scalar::<f32>()? > 0.0 {
            refuse!(
                "{}: tensor `{name}` is not the token embedding, but config.json says by \
                 tie_word_embeddings that it is",
                self.origin
            );
        }
        Ok(())
    }

    /// Ends the loading: a tensor that is left over means that the model isn't the one it is taken
    /// for.
    ///
    /// # Errors
    /// Naming the first tensor for which `ignored` doesn't hold.
    pub fn finish(self, ignored: impl Fn(&str) -> bool) -> Result<()> {
        if let Weights::Stored(tensors) = &self.weights
            && let Some(name) = tensors.keys().find(|name| !ignored(name))
        {
            refuse!(
                "{}: tensor `{name}` is no part of this architecture as config.json describes it",
                self.origin
            );
        }
        Ok(())
    }
}

/// Whether a tensor on the CPU holds nothing but numbers.
pub(crate) fn is_finite(tensor: &Tensor) -> Result<bool> {
    fn all<T: Float + Sync>(values: &[T]) -> bool {
        values.par_chunks(CHUNK).all(|values| values.iter().all(|value| value.is_finite()))
    }
    let tensor = tensor.contiguous()?;
    Ok(match tensor.dtype() {
        DType::F64 => all(&values::<f64>(&tensor)?),
        DType::BF16 => all(&values::<bf16>(&tensor)?),
        _ => all(&values::<f32>(&tensor.to_dtype(DType::F32)?)?),
    })
}

/// A random tensor, drawn in chunks side by side, each from a place of its own in the tensor's stream.
fn draw(name: &str, shape: &[usize], seed: u64) -> Result<Tensor> {
    if shape.len() == 1 {
        let value = if name.ends_with("bias") { 0f32 } else { 1f32 };
        return Ok(Tensor::full(value, shape, &Device::Cpu)?);
    }
    let mut values = vec![0f32; shape.iter().product()];
    (values.par_chunks_mut(CHUNK).enumerate()).for_each(|(index, chunk)| {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        random.set_stream(fnv1a(name));
        // A normal value takes two of the stream's words, seldom more; there is room for 256.
        random.set_word_pos((index * CHUNK * 256) as u128);
        for (value, drawn) in chunk.iter_mut().zip(random.sample_iter::<f32, _>(StandardNormal)) {
            *value = drawn * INITIALIZER_RANGE;
        }
    });
    Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
}

/// The 64-bit FNV-1a hash.
fn fnv1a(text: &str) -> u64 {
    (text.bytes()).fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoint(weights: Weights, dtype: DType) -> Checkpoint {
        let (config, origin) = (serde_json::Value::Null, "a file".to_owned());
        Checkpoint { config, weights, dtype, device: Device::Cpu, origin }
    }

    fn stored(name: &str, tensor: Tensor) -> Weights {
        let stored = Stored { shape: tensor.dims().to_vec(), read: Box::new(move || Ok(tensor)) };
        Weights::Stored([(name.to_owned(), stored)].into())
    }

    fn drawn(names: &[&str], threads: usize) -> BTreeMap<String, Vec<f32>> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let mut checkpoint = checkpoint(Weights::Random(3), DType::F32);
        let mut draw = |name: &str| checkpoint.take(name, &[3, CHUNK / 2 + 1]).unwrap();
        pool.install(|| {
            let values = |name: &&str| {
                ((*name).to_owned(), draw(name).flatten_all().unwrap().to_vec1().unwrap())
            };
            names.iter().map(values).collect()
        })
    }

    #[test]
    fn random_weights_depend_on_neither_order_nor_threads() {
        let one = drawn(&["a", "b", "c"], 1);
        assert_eq!(one, drawn(&["c", "a", "b"], 3));
        assert_ne!(one["a"], one["b"]);
        // No chunk repeats another's values, and they are as wide as they should be.
        let values = &one["a"];
        assert_ne!(values[..8], values[CHUNK..CHUNK + 8]);
        let square = values.iter().map(|value| f64::from(value * value)).sum::<f64>();
        let deviation = (square / values.len() as f64).sqrt();
        assert!((deviation - 0.02).abs() < 2e-4, "{deviation}");
    }

    /// No tensor is read before it is asked for, and one in the wanted type isn't widened on its way.
    #[test]
    fn a_bfloat16_file_is_read_tensor_by_tensor_and_never_widened() {
        let narrow = Tensor::ones((2, 3), DType::BF16, &Device::Cpu).unwrap();
        let id = narrow.id();
        let refused = || refuse!("this tensor was not asked for");
        let other = Stored { shape: vec![2, 3], read: Box::new(refused) };
        let Weights::Stored(mut tensors) = stored("a", narrow) else { unreachable!() };
        tensors.insert("b".to_owned(), other);
        let mut checkpoint = checkpoint(Weights::Stored(tensors), DType::BF16);
        assert_eq!(checkpoint.take("a", &[2, 3]).unwrap().id(), id);
        assert!(checkpoint.take("b", &[3, 2]).unwrap_err().to_string().contains("`b` is [2, 3]"));
    }

    #[test]
    fn a_weight_that_is_not_finite_is_refused_in_every_precision() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for dtype in [DType::F32, DType::F64, DType::BF16] {
                let tensor = Tensor::new(&[[1.0, 2.0], [bad, 0.5]], &Device::Cpu).unwrap();
                let error = checkpoint(stored("wte", tensor), dtype).take("wte", &[2, 2]);
                let error = error.unwrap_err().to_string();
                assert!(error.contains("a file: tensor `wte`"), "{error}");
            }
        }
        // Finite in the file, but not in the type the model is kept in.
        let tensor = Tensor::new(&[[1e300f64]], &Device::Cpu).unwrap();
        assert!(checkpoint(stored("wte", tensor), DType::F32).take("wte", &[1, 1]).is_err());
    }
}
