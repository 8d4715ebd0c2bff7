"""Times a plain Hugging Face fine-tuning step in PyTorch: forward, backward, SGD with momentum.

What `circuit-tuning bench` is compared with. Needs torch and transformers:

    python benches/pytorch_step.py CONFIG_FOLDER [--batch-size 16] [--seq-len 32] [--steps 5]

Prints one JSON object: median, least and largest seconds of a step, and the peak memory in bytes.
"""

import argparse
import json
import resource
import statistics
import time

import torch
from transformers import AutoConfig, AutoModelForCausalLM

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("config")
parser.add_argument("--batch-size", type=int, default=16)
parser.add_argument("--seq-len", type=int, default=32)
parser.add_argument("--steps", type=int, default=5)
parser.add_argument("--threads", type=int, default=torch.get_num_threads())
parser.add_argument("--device", default="cpu")
arguments = parser.parse_args()

torch.set_num_threads(arguments.threads)
torch.manual_seed(0)
config = AutoConfig.from_pretrained(arguments.config)
# GPT-2's dropout is off, as it is in circuit-tuning.
for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop"):
    if hasattr(config, name):
        setattr(config, name, 0.0)
model = AutoModelForCausalLM.from_config(config).to(arguments.device).train()
optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
shape = (arguments.batch_size, arguments.seq_len)
tokens = torch.randint(config.vocab_size, shape, device=arguments.device)


def synchronize():
    if arguments.device != "cpu":
        torch.cuda.synchronize()


seconds = []
for _ in range(arguments.steps + 1):
    synchronize()
    start = time.perf_counter()
    model(input_ids=tokens, labels=tokens).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    synchronize()
    seconds.append(time.perf_counter() - start)
# The first step finds memory cold and is not counted.
del seconds[0]
print(
    json.dumps(
        {
            "median_s": statistics.median(seconds),
            "min_s": min(seconds),
            "max_s": max(seconds),
            "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }
    )
)
