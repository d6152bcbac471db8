"""Peak memory of exporting a large decoder and of completing with what was made, against its weights in fp16.

    python scripts/bench/decoder_memory.py FOLDER [--layers 22] [--calibration installed] [--threads N] [--json]

FOLDER gets a Llama of TinyLlama's shape (22 layers x 2048, 1.1 B parameters) with random weights in fp16, in files of
500 MB, written a layer at a time, unless it is there already. `compress export` to int4 is a process of its own, and so
is a completion of 16 tokens; of both the peak is what the system says when they have ended.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

_WIDTH, _INNER, _HEADS, _KV, _VOCAB = 2048, 5632, 32, 4, 32_000
_INDEX = "model.safetensors.index.json"
_COMPLETE = """
import sys, codemill
model = codemill.load(sys.argv[1], threads=int(sys.argv[2]))
made = model.complete("import os\\n\\n\\ndef read(path):\\n", max_tokens=16, drafts=False)
assert len(made.tokens) == 16 or made.finish_reason == "stop", made
"""
_PEAK = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:]).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)
sys.exit(code)
"""


def write_model(folder: Path, layers: int) -> None:
    """The folder of a model as transformers has it."""
    import torch
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return (torch.randn(shape, generator=generator) * 0.02).half()

    kv = _WIDTH // _HEADS * _KV
    shapes = {
        "self_attn.q_proj": (_WIDTH, _WIDTH),
        "self_attn.k_proj": (kv, _WIDTH),
        "self_attn.v_proj": (kv, _WIDTH),
        "self_attn.o_proj": (_WIDTH, _WIDTH),
        "mlp.gate_proj": (_INNER, _WIDTH),
        "mlp.up_proj": (_INNER, _WIDTH),
        "mlp.down_proj": (_WIDTH, _INNER),
    }
    ones = torch.ones(_WIDTH).half()
    parts: list[dict[str, torch.Size | Any]] = [
        {
            "model.embed_tokens.weight": (_VOCAB, _WIDTH),
            "lm_head.weight": (_VOCAB, _WIDTH),
            "model.norm.weight": None,
        }
    ]
    for number in range(layers):
        at = f"model.layers.{number}"
        parts.append(
            {f"{at}.{name}.weight": shape for name, shape in shapes.items()}
            | {f"{at}.input_layernorm.weight": None, f"{at}.post_attention_layernorm.weight": None}
        )
    folder.mkdir(parents=True, exist_ok=True)
    where, total = {}, 0
    for number, part in enumerate(parts):
        file = f"model-{number + 1:05}-of-{len(parts):05}.safetensors"
        tensors = {
            name: ones.clone() if shape is None else drawn(*shape) for name, shape in part.items()
        }
        total += sum(value.numel() * 2 for value in tensors.values())
        save_file(tensors, folder / file, metadata={"format": "pt"})
        where |= dict.fromkeys(tensors, file)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": _WIDTH,
        "intermediate_size": _INNER,
        "num_hidden_layers": layers,
        "num_attention_heads": _HEADS,
        "num_key_value_heads": _KV,
        "vocab_size": _VOCAB,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
    }
    (folder / "config.json").write_text(json.dumps(config))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: at for at, token in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    # last: what is there is whole then
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / _INDEX).write_text(json.dumps(index))


def measured(command: list[str]) -> tuple[float, int]:
    """Seconds, and the peak of a process."""
    started = time.perf_counter()
    ended = subprocess.run(
        [sys.executable, "-c", _PEAK, *command], check=True, stdout=subprocess.PIPE, text=True
    )
    return time.perf_counter() - started, int(ended.stdout.splitlines()[-1])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=22, help="of a model that is not there yet")
    parser.add_argument("--calibration", default="installed")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    index = asked.folder / _INDEX
    if not index.is_file():
        write_model(asked.folder, asked.layers)
    weights = json.loads(index.read_text())["metadata"]["total_size"]
    bundle = asked.folder.with_name(f"{asked.folder.name}-int4")
    compress = [sys.executable, "-m", "codemill", "export", str(asked.folder)]
    compress += ["--task", "complete", "--calibration", asked.calibration, "--out", str(bundle)]
    export_s, export_peak = measured(compress)
    complete = [sys.executable, "-c", _COMPLETE, str(bundle), str(asked.threads)]
    complete_s, complete_peak = measured(complete)
    found = {
        "weights_fp16_bytes": weights,
        "export_s": export_s,
        "export_peak_bytes": export_peak,
        "export_share": export_peak / weights,
        "complete_s": complete_s,
        "complete_peak_bytes": complete_peak,
        "complete_share": complete_peak / weights,
        "bundle_bytes": sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file()),
    }
    if asked.json:
        print(json.dumps(found, indent=1))
        return
    print(
        f"weights in fp16 {weights / 1e9:.2f} GB; export {export_s:.0f} s, peak {export_peak / 1e9:.2f} GB "
        f"({found['export_share']:.2f}x); 16 tokens {complete_s:.0f} s, peak {complete_peak / 1e9:.2f} GB "
        f"({found['complete_share']:.2f}x); bundle {found['bundle_bytes'] / 1e9:.2f} GB"
    )


if __name__ == "__main__":
    main()
