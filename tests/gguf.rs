//! GGUF files: a small one is the model it was made from, and what one says that can't be done is refused.

use candle_core::DType;
use candle_core::quantized::gguf_file::{self, Value as Gguf};
use candle_core::quantized::{GgmlDType, QTensor};
use circuit_framework::{Device, Tensor};

use crate::models::{case, logits, refuses, tensors};
use crate::support::{at, load};

/// A GGUF file of the reference Llama, its metadata and tensors changed.
pub(crate) fn gguf(
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

/// A reference case as a GGUF file: its architecture, its own keys, its names in GGUF in place of Hugging
/// Face's, and what becomes of a tensor.
struct Form {
    case: &'static str,
    architecture: &'static str,
    keys: Vec<(&'static str, Gguf)>,
    names: &'static [(&'static str, &'static str)],
    change: fn(&str, Tensor) -> Tensor,
}

const NAMES: &[(&str, &str)] = &[
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
    ("input_layernorm", "attn_norm"),
];
const BEFORE: &[(&str, &str)] = &[("post_attention_layernorm", "ffn_norm")];
const AFTER: &[(&str, &str)] = &[
    ("post_attention_layernorm", "post_attention_norm"),
    ("pre_feedforward_layernorm", "ffn_norm"),
    ("post_feedforward_layernorm", "post_ffw_norm"),
];
const NEOX: &[(&str, &str)] = &[
    ("gpt_neox.embed_in", "token_embd"),
    ("embed_out", "output"),
    ("gpt_neox.final_layer_norm", "output_norm"),
    ("gpt_neox.layers", "blk"),
    ("post_attention_layernorm", "ffn_norm"),
    ("attention.query_key_value", "attn_qkv"),
    ("attention.dense", "attn_output"),
    ("mlp.dense_h_to_4h", "ffn_up"),
    ("mlp.dense_4h_to_h", "ffn_down"),
];

fn forms() -> Vec<Form> {
    let same = |_: &str, tensor: Tensor| tensor;
    let one_more = |name: &str, tensor: Tensor| match name.ends_with("norm.weight") {
        true => (tensor + 1.0).unwrap(),
        false => tensor,
    };
    // Head by head in the case, in GGUF queries, keys and values one behind the other.
    let by_part = |name: &str, tensor: Tensor| match name.contains("query_key_value") {
        true => {
            let parts = tensor.reshape((3, 3, 8, ())).unwrap().transpose(0, 1).unwrap();
            parts.contiguous().unwrap().reshape(tensor.shape()).unwrap()
        }
        false => tensor,
    };
    let form =
        |case, architecture, keys, names, change| Form { case, architecture, keys, names, change };
    let width = |width: u32| {
        vec![
            ("attention.key_length", Gguf::U32(width)),
            ("attention.value_length", Gguf::U32(width)),
        ]
    };
    let gemma2 = vec![
        ("attn_logit_softcapping", Gguf::F32(2.0)),
        ("final_logit_softcapping", Gguf::F32(3.0)),
        ("attention.sliding_window", Gguf::U32(4)),
    ];
    let gemma3 = vec![
        ("attention.sliding_window", Gguf::U32(3)),
        ("attention.sliding_window_pattern", Gguf::U32(3)),
    ];
    let neox =
        vec![("rope.dimension_count", Gguf::U32(2)), ("use_parallel_residual", Gguf::Bool(true))];
    vec![
        form("qwen2-key-mean", "qwen2", vec![], BEFORE, same),
        form("qwen3-all-corrupt", "qwen3", width(10), BEFORE, same),
        form("gemma2-tune-sgd", "gemma2", [gemma2, width(6)].concat(), AFTER, one_more),
        form("gemma3-key-corrupt", "gemma3", [gemma3, width(6)].concat(), AFTER, one_more),
        form("olmo2-eap-ig", "olmo2", vec![], AFTER, same),
        form("gpt-neox-all-mean-positional", "gptneox", neox, NEOX, by_part),
    ]
}

/// The file of a form, with further keys.
fn gguf_of(form: &Form, more: &[(&str, Gguf)]) -> tempfile::TempDir {
    let config = crate::models::json_of(&case(form.case).join("config.json"));
    gguf(|metadata, all| {
        metadata.retain(|(key, _)| key.starts_with("tokenizer"));
        metadata
            .push(("general.architecture".to_owned(), Gguf::String(form.architecture.to_owned())));
        let mut add =
            |key: &str, value| metadata.push((format!("{}.{key}", form.architecture), value));
        for (theirs, ours) in [
            ("block_count", "num_hidden_layers"),
            ("context_length", "max_position_embeddings"),
            ("embedding_length", "hidden_size"),
            ("feed_forward_length", "intermediate_size"),
            ("attention.head_count", "num_attention_heads"),
            ("attention.head_count_kv", "num_key_value_heads"),
        ] {
            if let Some(number) = config[ours].as_u64() {
                add(theirs, Gguf::U32(number as u32));
            }
        }
        for (theirs, ours) in [
            ("rope.freq_base", "rope_theta"),
            ("attention.layer_norm_rms_epsilon", "rms_norm_eps"),
            ("attention.layer_norm_epsilon", "layer_norm_eps"),
        ] {
            if let Some(number) = config[ours].as_f64() {
                add(theirs, Gguf::F32(number as f32));
            }
        }
        for (key, value) in form.keys.iter().chain(more) {
            add(key, value.clone());
        }
        let outer = [
            ("model.embed_tokens", "token_embd"),
            ("model.norm", "output_norm"),
            ("lm_head", "output"),
            ("model.layers", "blk"),
        ];
        *all = (tensors(form.case).into_iter())
            .map(|(name, tensor)| {
                let tensor = (form.change)(&name, tensor);
                let names = form.names.iter().chain(&outer).chain(NAMES);
                let name = names.fold(name, |name, (ours, theirs)| name.replace(ours, theirs));
                (name, tensor)
            })
            .collect();
    })
}

#[test]
fn a_gguf_file_of_every_family_is_the_model_it_was_made_from() {
    for form in forms() {
        let file = gguf_of(&form, &[]);
        let found = logits(&*load(at(&file.path().join("model.gguf"))).model);
        // GGUF has no key for it: but for the largest Gemmas it is a head's width.
        let original = crate::models::with_config(form.case, |config| {
            if !config["query_pre_attn_scalar"].is_null() {
                config["query_pre_attn_scalar"] = config["head_dim"].clone();
            }
        });
        let expected = logits(&*load(at(original.path())).model);
        let pairs = found.iter().flatten().zip(expected.iter().flatten());
        // 1 + w is a float32 too.
        let worst = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(worst < 1e-5, "{}: {worst}", form.architecture);
        for (key, value) in
            [("logit_scale", Gguf::F32(0.5)), ("rope.scaling.factor", Gguf::F32(4.0))]
        {
            let file = gguf_of(&form, &[(key, value)]);
            let key = format!("`{}.{key}`", form.architecture);
            refuses(&file.path().join("model.gguf"), &["model.gguf", &key]);
        }
    }
}

/// Pieces with scores: the best pair first, and what no piece covers in bytes.
#[test]
fn gguf_tokenizers_by_scores_merge_the_best_pair_first() {
    let pieces: Vec<(String, f32, i32)> = [
        ("<pad>", 0.0, 3),
        ("<bos>", 0.0, 3),
        ("<unk>", 0.0, 2),
        ("<turn>", 0.0, 4),
        ("\u{2581}", -9.0, 1),
        ("a", -9.0, 1),
        ("b", -9.0, 1),
        ("c", -9.0, 1),
        ("ab", -2.0, 1),
        ("bc", -1.0, 1),
        ("\u{2581}a", -3.0, 1),
    ]
    .map(|(piece, score, kind)| (piece.to_owned(), score, kind))
    .into_iter()
    .chain((0..=255u8).map(|byte| (format!("<0x{byte:02X}>"), 0.0, 6)))
    .collect();
    let tokenizer = |space: bool| {
        let file = gguf(|metadata, _| {
            metadata.retain(|(key, _)| !key.starts_with("tokenizer"));
            let text = |text: &String| Gguf::String(text.clone());
            let tokens = pieces.iter().map(|(piece, _, _)| text(piece)).collect();
            let scores = pieces.iter().map(|(_, score, _)| Gguf::F32(*score)).collect();
            let kinds = pieces.iter().map(|(_, _, kind)| Gguf::I32(*kind)).collect();
            for (key, value) in [
                ("model", Gguf::String("llama".to_owned())),
                ("tokens", Gguf::Array(tokens)),
                ("scores", Gguf::Array(scores)),
                ("token_type", Gguf::Array(kinds)),
                ("bos_token_id", Gguf::U32(1)),
                ("add_space_prefix", Gguf::Bool(space)),
            ] {
                metadata.push((format!("tokenizer.ggml.{key}"), value));
            }
        });
        load(at(&file.path().join("model.gguf"))).tokenizer.unwrap()
    };
    let (plain, prefixed) = (tokenizer(false), tokenizer(true));
    assert_eq!(plain.prefix(), Some(1));
    // "bc" is better than "ab"; a space stands before "a".
    assert_eq!(plain.encode("abc a").unwrap(), [5, 9, 10]);
    assert_eq!(prefixed.encode("abc a").unwrap(), [10, 9, 10]);
    assert_eq!(plain.encode("<turn>ab").unwrap(), [3, 8]);
    let bytes: Vec<u32> = "é".bytes().map(|byte| 11 + u32::from(byte)).collect();
    assert_eq!(plain.encode("é").unwrap(), bytes);
    for tokenizer in [plain, prefixed] {
        for text in ["abc a", "é a", "b  c"] {
            assert_eq!(tokenizer.decode(&tokenizer.encode(text).unwrap()).unwrap(), text);
        }
    }
}
