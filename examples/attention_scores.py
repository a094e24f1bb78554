"""The first program to run: the attention scores of a real model, by a fused kernel and by the chain that it replaces.

    python examples/attention_scores.py

On a GPU it runs the fused kernel and prints both times. Without one it computes a smaller batch with the same meaning
by torch operations, and prints which kernel a GPU would run.
"""

import torch

import softmax_ops

HEADS, LENGTH, HEAD_SIZE = 16, 512, 64  # BERT-large


def chain(scores: torch.Tensor, scale: float, padding: torch.Tensor) -> torch.Tensor:
    """What models write: four kernels, eight passes over memory."""
    return (scores * scale).masked_fill(padding, float("-inf")).softmax(-1)


def milliseconds(run, repeats: int = 50) -> float:
    """Median time of a call on the GPU."""
    times = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return sorted(times)[repeats // 2]


def main() -> None:
    gpu = torch.cuda.is_available()
    device, batch = ("cuda", 32) if gpu else ("cpu", 1)
    torch.manual_seed(0)
    scores = torch.randn(batch, HEADS, LENGTH, LENGTH, device=device, dtype=torch.float16) * 8
    lengths = torch.randint(LENGTH // 2, LENGTH + 1, (batch, 1, 1, 1), device=device)
    padding = torch.arange(LENGTH, device=device) >= lengths  # [B, 1, 1, K], True hides
    scale = HEAD_SIZE**-0.5

    fused = softmax_ops.softmax(scores, scale=scale, mask=padding)
    exact = chain(scores.double(), scale, padding)
    difference = (fused.double() - exact).abs().max().item()
    print(f"scores [{batch}, {HEADS}, {LENGTH}, {LENGTH}] float16, key padding mask {list(padding.shape)}")
    print(f"largest difference from the chain in float64: {difference:.2e} (rounding a 1 to float16: up to 2.4e-04)")
    if gpu:
        ours = milliseconds(lambda: softmax_ops.softmax(scores, scale=scale, mask=padding))
        theirs = milliseconds(lambda: chain(scores, scale, padding))
        print(f"fused {ours:.3f} ms, chain {theirs:.3f} ms: {theirs / ours:.2f} times as fast")
    else:
        print("no GPU here: this was the same contract by torch operations on the CPU. A GPU would run")
    print(softmax_ops.explain(scores, scale=scale, mask=padding))


if __name__ == "__main__":
    main()
