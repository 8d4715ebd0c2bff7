"""Scores edges and evaluates circuits with EAP-IG's own code, on the data of task `tokens`; times it, and compares.

What `circuit-tuning discover` and `faithfulness` are compared with. Needs torch, transformer_lens (2.15 or later),
safetensors and EAP-IG's sources (github.com/hannamw/EAP-IG, its folder `src` on PYTHONPATH):

    python benches/eap_ig.py MODEL_FOLDER DATA.jsonl [--method EAP-IG-inputs] [--batch-size 16] [--top-n 200]
        [--scores OURS.safetensors]

MODEL_FOLDER is a GPT-2 in Hugging Face's format. The lines of DATA.jsonl are of one length and have one key each. With
--scores, which `discover --positions all --ablation corrupt --nodes head,mlp,embed,logits --scores` wrote, the largest
difference is printed, as a part of the largest score. Prints one JSON object.
"""

import argparse
import json
import resource
import time

import torch
from safetensors import safe_open
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights
from transformers import GPT2LMHeadModel

import eap.attribute
import eap.evaluate
from eap.graph import Graph

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("model")
parser.add_argument("data")
parser.add_argument("--method", default="EAP")
parser.add_argument("--ig-steps", type=int, default=5)
parser.add_argument("--batch-size", type=int, default=16)
parser.add_argument("--top-n", type=int, default=200)
parser.add_argument("--threads", type=int, default=torch.get_num_threads())
parser.add_argument("--scores")
arguments = parser.parse_args()
torch.set_num_threads(arguments.threads)

# EAP-IG asks for a GPU by name.
zeros = torch.zeros
torch.zeros = lambda *sizes, **options: zeros(*sizes, **{**options, "device": "cpu"})


def load(folder):
    """The model as TransformerLens has it, its weights as they are."""
    source = GPT2LMHeadModel.from_pretrained(folder, attn_implementation="eager").eval()
    of = source.config
    config = HookedTransformerConfig(
        n_layers=of.n_layer, n_heads=of.n_head, d_model=of.n_embd, d_head=of.n_embd // of.n_head, d_mlp=4 * of.n_embd,
        n_ctx=of.n_positions, d_vocab=of.vocab_size, eps=of.layer_norm_epsilon, act_fn=of.activation_function,
        normalization_type="LN", device="cpu", use_attn_result=True, use_split_qkv_input=True, use_hook_mlp_in=True,
    )
    model = HookedTransformer(config)
    model.load_state_dict(convert_gpt2_weights(source, config), strict=False)
    return model.eval()


class Examples:
    """Batches of clean and corrupted tokens, and of each key its position, right and wrong token."""

    def __init__(self, path, batch_size):
        lines = [json.loads(line) for line in open(path)]
        self.batches = [lines[start : start + batch_size] for start in range(0, len(lines), batch_size)]

    def __iter__(self):
        for lines in self.batches:
            keys = [(l["key_positions"][0] - 1, l["correct"][0], l["wrong"][0]) for l in lines]
            yield [l["tokens"] for l in lines], [l["corrupt_tokens"] for l in lines], torch.tensor(keys)

    def __len__(self):
        return len(self.batches)


def tokenize_plus(model, tokens, max_length=None):
    tokens = torch.tensor(tokens)
    return tokens, torch.ones_like(tokens), torch.full((len(tokens),), tokens.shape[1]), tokens.shape[1]


eap.attribute.tokenize_plus = eap.evaluate.tokenize_plus = tokenize_plus


def logit_diff(logits, clean_logits, lengths, keys):
    rows = torch.arange(len(keys))
    return logits[rows, keys[:, 0], keys[:, 1]] - logits[rows, keys[:, 0], keys[:, 2]]


def name(node):
    """Our name of a node of EAP-IG's."""
    if node in ("input", "logits"):
        return {"input": "embed", "logits": "logits"}[node]
    if node.startswith("m"):
        return f"mlp.{node[1:]}"
    layer, head = node[1:].split(".h")
    return f"head.{layer}.{head}"


def largest_difference(graph, path):
    """Between EAP-IG's scores and ours, which have the other sign: what the metric loses."""
    with safe_open(path, "pt") as file:
        ours, about = file.get_tensor("scores"), file.metadata()
    writers, readers = (json.loads(about[axis]) for axis in ("writers", "readers"))
    worst = 0.0
    for edge in graph.edges.values():
        port = f".{edge.qkv}" if edge.qkv else ""
        reader = name(edge.child.name) + port
        own = ours[writers.index(name(edge.parent.name)), readers.index(reader)]
        worst = max(worst, abs(float(own) + float(edge.score)))
    return worst / float(ours.abs().max())


model, examples = load(arguments.model), Examples(arguments.data, arguments.batch_size)
graph = Graph.from_model(model)
# Exact patching averages the metric's values, the other methods go back from their sum.
metric = logit_diff if arguments.method == "exact" else lambda *of: logit_diff(*of).sum()
begin = time.time()
eap.attribute.attribute(
    model, graph, examples, metric, arguments.method, ig_steps=arguments.ig_steps, quiet=True
)
result = {"edges": len(graph.edges), "discovery_seconds": time.time() - begin}
if arguments.scores:
    result["largest_difference"] = largest_difference(graph, arguments.scores)
graph.apply_topn(arguments.top_n, True)
begin = time.time()
with torch.inference_mode():
    metric = eap.evaluate.evaluate_graph(model, graph, examples, logit_diff, quiet=True)
result |= {"edges_kept": graph.count_included_edges(), "metric": float(metric.mean())}
result["evaluation_seconds"] = time.time() - begin
result["peak_rss_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps(result))
