//! GGUF files: a small one is the model it was made from, and what one says that can't be done is refused.

use candle_core::DType;
use candle_core::quantized::gguf_file::{self, Value as Gguf};
use candle_core::quantized::{GgmlDType, QTensor};
use circuit_framework::{Device, Tensor};

use crate::models::{case, logits, refuses, tensors};
use crate::support::{at, load};

/// A GGUF file of the reference Llama, its metadata and tensors changed.
fn gguf(
    change: impl FnOnce(&mut Vec<(String, Gguf)>, &mut Vec<(String, Tensor)>),
) -> tempfile::TempDir {
    let text = |text: &str| Gguf::String(text.to_owned());
    let list = |values: Vec<String>| Gguf::Array(values.into_iter().map(Gguf::String).collect());
    let mut vocabulary: Vec<String> = (0..97).map(|id| format!("token {id}")).collect();
    vocabulary.splice(10..13, ["a", "b", "ab"].map(str::to_owned));
    let mut metadata: Vec<(String, Gguf)> = [
        ("general.architecture", text("llama")),
        ("llama.block_count", Gguf::U32(3)),
        ("llama.context_length", Gguf::U32(64)),
        ("llama.embedding_length", Gguf::U32(32)),
        ("llama.feed_forward_length", Gguf::U32(64)),
        ("llama.attention.head_count", Gguf::U32(4)),
        ("llama.attention.head_count_kv", Gguf::U32(2)),
        ("llama.attention.layer_norm_rms_epsilon", Gguf::F32(1e-5)),
        ("llama.rope.dimension_count", Gguf::U32(8)),
        ("tokenizer.ggml.model", text("gpt2")),
        ("tokenizer.ggml.pre", text("gpt-2")),
        ("tokenizer.ggml.tokens", list(vocabulary)),
        ("tokenizer.ggml.merges", list(vec!["a b".to_owned()])),
        ("tokenizer.ggml.bos_token_id", Gguf::U32(1)),
        ("tokenizer.ggml.eos_token_id", Gguf::U32(2)),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into();
    // The reverse of what is done on loading: rotated pairs lie side by side.
    let permuted = |weight: &Tensor, heads: usize| {
        let (rows, columns) = weight.dims2().unwrap();
        let halves = weight.reshape((heads, 2, rows / heads / 2, columns)).unwrap();
        let pairs = halves.transpose(1, 2).unwrap().contiguous().unwrap();
        pairs.reshape((rows, columns)).unwrap()
    };
    let names = [
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("lm_head", "output"),
        ("model.layers", "blk"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
    ];
    let mut tensors: Vec<(String, Tensor)> = (tensors("llama-key-mean").into_iter())
        .map(|(name, tensor)| {
            let tensor = match () {
                () if name.contains("q_proj") => permuted(&tensor, 4),
                () if name.contains("k_proj") => permuted(&tensor, 2),
                () => tensor,
            };
            let name = names.iter().fold(name, |name, (ours, theirs)| name.replace(ours, theirs));
            (name, tensor)
        })
        .collect();
    change(&mut metadata, &mut tensors);
    let tensors: Vec<(String, QTensor)> = (tensors.into_iter())
        .map(|(name, tensor)| (name, QTensor::quantize(&tensor, GgmlDType::F32).unwrap()))
        .collect();
    let metadata: Vec<(&str, &Gguf)> =
        metadata.iter().map(|(key, value)| (&**key, value)).collect();
    let tensors: Vec<(&str, &QTensor)> = tensors.iter().map(|(name, t)| (&**name, t)).collect();
    let folder = tempfile::tempdir().unwrap();
    let mut file = std::fs::File::create(folder.path().join("model.gguf")).unwrap();
    gguf_file::write(&mut file, &metadata, &tensors).unwrap();
    folder
}

/// A GGUF file with one key of the metadata set.
fn gguf_with(key: &str, value: Gguf) -> tempfile::TempDir {
    gguf(|metadata, _| {
        metadata.retain(|(given, _)| given != key);
        metadata.push((key.to_owned(), value));
    })
}

#[test]
fn a_gguf_file_is_the_model_it_was_made_from() {
    let file = gguf(|_, _| {});
    let original = logits(&*load(at(&case("llama-key-mean"))).model);
    assert_eq!(logits(&*load(at(&file.path().join("model.gguf"))).model), original);
    // What says what is so without it.
    for (key, value) in [
        ("llama.attention.key_length", Gguf::U32(8)),
        ("llama.attention.value_length", Gguf::U32(8)),
        ("llama.rope.scaling.type", Gguf::String("none".to_owned())),
        ("llama.rope.scaling.factor", Gguf::F32(1.0)),
        ("llama.expert_count", Gguf::U32(0)),
        ("llama.vocab_size", Gguf::U32(97)),
    ] {
        let file = gguf_with(key, value);
        assert_eq!(logits(&*load(at(&file.path().join("model.gguf"))).model), original, "{key}");
    }
}

#[test]
fn what_a_gguf_file_says_and_is_not_implemented_is_refused_by_name() {
    for (key, value) in [
        ("llama.rope.scaling.type", Gguf::String("yarn".to_owned())),
        ("llama.rope.scaling.factor", Gguf::F32(4.0)),
        ("llama.rope.scaling.original_context_length", Gguf::U32(16)),
        ("llama.rope.scale_linear", Gguf::F32(2.0)),
        ("llama.rope.dimension_count", Gguf::U32(4)),
        ("llama.attention.key_length", Gguf::U32(16)),
        ("llama.attention.value_length", Gguf::U32(16)),
        ("llama.attention.sliding_window", Gguf::U32(4)),
        ("llama.attention.causal", Gguf::Bool(false)),
        ("llama.expert_count", Gguf::U32(8)),
        ("llama.logit_scale", Gguf::F32(0.5)),
        ("llama.block_count", Gguf::U32(0)),
        ("llama.attention.head_count", Gguf::U32(0)),
        ("llama.attention.head_count_kv", Gguf::U32(0)),
        ("llama.attention.head_count", Gguf::U32(5)),
        ("llama.attention.head_count", Gguf::U64(u64::MAX)),
        ("llama.embedding_length", Gguf::U32(0)),
    ] {
        let file = gguf_with(key, value);
        refuses(&file.path().join("model.gguf"), &["model.gguf", &format!("`{key}`")]);
    }
    for name in ["blk.0.attn_q.bias", "blk.3.attn_q.weight", "blk.1.attn_q_norm.weight"] {
        let file = gguf(|_, tensors| {
            let tensor = Tensor::ones((32, 32), DType::F32, &Device::Cpu).unwrap();
            tensors.push((name.to_owned(), tensor));
        });
        refuses(&file.path().join("model.gguf"), &["model.gguf", &format!("tensor `{name}`")]);
    }
    let file = gguf(|_, tensors| tensors.retain(|(name, _)| name != "blk.2.ffn_up.weight"));
    refuses(&file.path().join("model.gguf"), &["no tensor", "layers.2.mlp.up_proj.weight"]);
}

#[test]
fn gguf_tokenizers_begin_texts_as_llama_cpp_does() {
    let prefix = |file: &tempfile::TempDir| {
        load(at(&file.path().join("model.gguf"))).tokenizer.unwrap().prefix()
    };
    assert_eq!(prefix(&gguf(|_, _| {})), None);
    let add = "tokenizer.ggml.add_bos_token";
    assert_eq!(prefix(&gguf_with(add, Gguf::Bool(false))), None);
    assert_eq!(prefix(&gguf_with(add, Gguf::Bool(true))), Some(1));
    let pre = |kind: &str| gguf_with("tokenizer.ggml.pre", Gguf::String(kind.to_owned()));
    assert_eq!(prefix(&pre("llama-bpe")), Some(1));
    assert_eq!(prefix(&pre("smollm")), None);
}
