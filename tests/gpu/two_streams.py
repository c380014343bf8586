"""Operators on two streams and in two threads at once; run by test_gpu_runtime.py, which sets a time limit.

The projection kernel of the CUDA library occupies the whole GPU, and its blocks wait for each other. If each
of two launches held a part of the GPU, both would wait for ever.
"""

import threading

import torch
from bits import assert_same_bits
from inputs import noise
from torch import Tensor

import noisetilt_kernels  # noqa: F401
from bench.inputs import power_law

REPEATS = 30


def main() -> None:
    whiten = torch.ops.noisetilt.whiten
    wan = power_law(1.0, (336, 60, 104)).float()[None].cuda()
    inputs = [power_law(1.0).float()[None].cuda(), noise(1).cuda(), noise(7).cuda(), wan]
    expected = [whiten(x) for x in inputs]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]

    def check(results: list[tuple[int, Tensor]]) -> None:
        for k, result in results:
            assert_same_bits(result, expected[k], f"input {k}")

    for first, second in ((0, 0), (0, 1), (1, 2), (0, 3), (3, 3)):
        results = []
        for _ in range(REPEATS if max(first, second) < 3 else 5):
            for k, stream in zip((first, second), streams, strict=True):
                with torch.cuda.stream(stream):
                    results.append((k, whiten(inputs[k])))
        torch.cuda.synchronize()
        check(results)
        print(f"inputs {first} and {second} on two streams: done", flush=True)

    found: list[list[tuple[int, Tensor]]] = [[], []]

    def work(index: int) -> None:
        with torch.cuda.stream(streams[index]):
            found[index] += [(k, whiten(inputs[k])) for _ in range(REPEATS) for k in (index, 2)]

    threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    torch.cuda.synchronize()
    for results in found:
        assert len(results) == 2 * REPEATS
        check(results)
    print("two threads: done", flush=True)


if __name__ == "__main__":
    main()
