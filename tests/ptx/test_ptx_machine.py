"""The interpreter of PTX itself: results of single instructions, and the faults that it must find."""

import re
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from ptx.build import load

HEAD = """
.version 8.0
.target sm_90
.address_size 64
.visible .entry toy(.param .u64 toy_param_0, .param .u64 toy_param_1)
{
  .reg .pred %p<9>;
  .reg .b16 %h<9>;
  .reg .b32 %r<29>;
  .reg .f32 %f<9>;
  .reg .b64 %rd<9>;
  .reg .f64 %fd<9>;
  .shared .align 16 .b8 shared[1024];
  .local .align 8 .b8 depot[16];
  ld.param.u64 %rd0, [toy_param_0];
  ld.param.u64 %rd1, [toy_param_1];
  mov.u32 %r0, %tid.x;
  mov.u32 %r1, %ctaid.x;
  mov.u32 %r2, %ntid.x;
  mad.lo.s32 %r3, %r1, %r2, %r0;
  mul.wide.u32 %rd2, %r3, 4;
  add.s64 %rd3, %rd0, %rd2;
  add.s64 %rd4, %rd1, %rd2;
  ld.global.u32 %r4, [%rd3];
"""
"""Begin of a kernel. %rd3, %rd4: a thread's place in the input and in the result; %r4: its word."""

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def interpreter() -> ModuleType:
    return load("interpreter")


@pytest.fixture
def run(interpreter: ModuleType) -> Run:
    """Return a function that runs the body of a toy on words and returns its words."""

    def run(
        body: str,
        words: Any = None,
        blocks: int = 1,
        threads: int = 32,
        cluster: int = 1,
        residents: int | None = None,
        **settings: Any,
    ) -> Any:
        given = np.arange(blocks * threads, dtype=np.uint32) if words is None else np.asarray(words)
        given = np.ascontiguousarray(given)
        result = np.zeros_like(given)
        machine = interpreter.Machine()
        for name, value in settings.items():
            setattr(machine, name, value)
        machine.add_memory(given.ctypes.data, given.nbytes, False)
        machine.add_memory(result.ctypes.data, result.nbytes, True)
        kernel = interpreter.Kernel(HEAD + body + "\n  ret;\n}\n")
        arguments = [given.ctypes.data, result.ctypes.data]
        machine.run(kernel, blocks, threads, 0, residents or blocks, arguments, blocks_per_cluster=cluster)
        return result

    return run


STORE = "st.global.u32 [%rd4], %r5;"
WORDS = np.array([0, 1, 2, 31, 255, 2**31 - 1, 2**31, 2**32 - 1] * 4, dtype=np.uint32)
SIGNED = WORDS.astype(np.int32)


# ---- instructions ----


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("add.s32 %r5, %r4, -3;", WORDS - np.uint32(3)),
        ("mul.hi.s32 %r5, %r4, %r4;", (SIGNED.astype(np.int64) ** 2 >> 32).astype(np.uint32)),
        ("mad.lo.u32 %r5, %r4, 5, %r4;", WORDS * np.uint32(6)),
        ("shr.s32 %r5, %r4, 40;", (SIGNED >> 31).astype(np.uint32)),
        ("shr.u32 %r5, %r4, 40;", WORDS * 0),
        ("shl.b32 %r5, %r4, 33;", WORDS * 0),
        ("bfe.u32 %r5, %r4, 4, 28;", WORDS >> 4),
        ("bfe.s32 %r5, %r4, 31, 1;", (SIGNED >> 31).astype(np.uint32)),
        ("bfi.b32 %r5, %r4, 0, 8, 8;", (WORDS & 255) << 8),
        ("prmt.b32 %r5, %r4, 0, 0x0123;", WORDS.byteswap()),
        ("popc.b32 %r5, %r4;", np.array([int(word).bit_count() for word in WORDS])),
        ("clz.b32 %r5, %r4;", np.array([32 - int(word).bit_length() for word in WORDS])),
        ("brev.b32 %r5, %r4;", np.array([int(f"{word:032b}"[::-1], 2) for word in WORDS])),
        ("max.s32 %r5, %r4, 7;", np.maximum(SIGNED, 7).astype(np.uint32)),
        ("not.b32 %r5, %r4;", ~WORDS),
        ("lop3.b32 %r5, %r4, 255, -1, 0x6a;", (WORDS & 255) ^ np.uint32(2**32 - 1)),
        ("shf.l.wrap.b32 %r5, %r4, %r4, 8;", (WORDS << 8) | (WORDS >> 24)),
        ("setp.lt.s32 %p1, %r4, 0; selp.b32 %r5, 1, 2, %p1;", np.where(SIGNED < 0, 1, 2)),
        ("setp.hi.u32 %p1, %r4, 255; @%p1 mov.b32 %r4, 9; mov.b32 %r5, %r4;",
         np.where(WORDS > 255, 9, WORDS)),
        ("cvt.u16.u32 %h1, %r4; cvt.u32.u16 %r5, %h1;", WORDS & 65535),
        ("cvt.u16.u32 %h1, %r4; cvt.s32.s8 %r5, %h1;",
         WORDS.astype(np.int8).astype(np.int32).astype(np.uint32)),
        ("cvt.u64.u32 %rd5, %r4; mov.b64 {%r6, %r7}, %rd5; mov.b64 %rd6, {%r7, %r6}; shr.u64 %rd6, %rd6, 32; "
         "cvt.u32.u64 %r5, %rd6;", WORDS),
        ("rem.u32 %r5, %r4, 7;", WORDS % 7),
        ("div.s32 %r5, %r4, -1;", (-SIGNED.astype(np.int64)).astype(np.uint32)),
        ("shfl.sync.bfly.b32 %r5|%p1, %r4, 3, 31, -1;", WORDS[np.arange(32) ^ 3]),
        ("shfl.sync.up.b32 %r5, %r4, 1, 0, -1;", WORDS[np.maximum(np.arange(32) - 1, 0)]),
        ("shfl.sync.idx.b32 %r5, %r4, 5, 31, -1;", np.full(32, WORDS[5])),
        ("redux.sync.max.s32 %r5, %r4, -1;", np.full(32, SIGNED.max()).astype(np.uint32)),
        ("match.any.sync.b32 %r5, %r4, -1;", np.array([0x01010101 << k for k in range(8)] * 4)),
        ("setp.eq.u32 %p1, %r4, 31; vote.sync.ballot.b32 %r5, %p1, -1;", np.full(32, 0x08080808)),
        ("st.local.u32 [depot+4], %r4; ld.local.u32 %r5, [depot+4];", WORDS),
        ("mov.u64 %rd5, depot; cvta.local.u64 %rd5, %rd5; st.u32 [%rd5+8], %r4; ld.u32 %r5, [%rd5+8];",
         WORDS),
    ],
)  # fmt: skip
def test_words(run: Run, body: str, expected: Any) -> None:
    np.testing.assert_array_equal(run(f"{body} {STORE}", WORDS), expected.astype(np.uint32))


FLOATS = np.array([0.0, -0.0, 1.5, -2.5, 3.5, 1e30, np.inf, np.nan] * 4, dtype=np.float32)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("add.rn.f32 %f2, %f1, 0f3F800000;", FLOATS + np.float32(1)),
        ("mul.rn.f32 %f2, %f1, %f1;", np.array([0, 0, 2.25, 6.25, 12.25, np.inf, np.inf, np.nan] * 4)),
        ("div.rn.f32 %f2, %f1, 0f40400000;", FLOATS / np.float32(3)),
        ("abs.f32 %f2, %f1; sqrt.rn.f32 %f2, %f2;", np.sqrt(np.abs(FLOATS))),
        ("neg.f32 %f2, %f1;", -FLOATS),
        ("max.f32 %f2, %f1, 0f00000000;", np.array([0, 0, 1.5, 0, 3.5, 1e30, np.inf, 0] * 4)),
        ("min.f32 %f2, %f1, 0f80000000;", np.array([-0.0, -0.0, -0.0, -2.5, -0.0, -0.0, -0.0, -0.0] * 4)),
        ("cvt.rni.f32.f32 %f2, %f1;", np.rint(FLOATS)),
        ("cvt.rzi.s32.f32 %r6, %f1; cvt.rn.f32.s32 %f2, %r6;",
         np.array([0, 0, 1, -2, 3, 2**31 - 1, 2**31 - 1, 0] * 4, dtype=np.float32)),
        ("cvt.f64.f32 %fd1, %f1; cvt.rn.f32.f64 %f2, %fd1;", FLOATS),
        ("cvt.rn.f16.f32 %h1, %f1; cvt.f32.f16 %f2, %h1;", torch.from_numpy(FLOATS).half().float().numpy()),
        ("cvt.rn.bf16.f32 %h1, %f1; mov.u16 %h2, 0; mov.b32 %f2, {%h2, %h1};",
         torch.from_numpy(FLOATS).bfloat16().float().numpy()),
        ("fma.rn.f32 %f2, %f1, 0f40000000, 0f3F800000;", FLOATS * 2 + np.float32(1)),
        ("setp.neu.f32 %p1, %f1, %f1; selp.f32 %f2, 0f3F800000, 0f00000000, %p1;", np.isnan(FLOATS)),
        # a NaN is neither equal nor unequal to itself
        ("setp.ne.f32 %p1, %f1, %f1; selp.f32 %f2, 0f3F800000, 0f00000000, %p1;", np.zeros(32)),
    ],
)  # fmt: skip
def test_floats(run: Run, body: str, expected: Any) -> None:
    found = run(f"mov.b32 %f1, %r4; {body} mov.b32 %r5, %f2; {STORE}", FLOATS.view(np.uint32)).view(
        np.float32
    )
    expected = np.asarray(expected, dtype=np.float32)
    np.testing.assert_array_equal(found, expected)
    ordered = ~np.isnan(expected)
    np.testing.assert_array_equal(np.signbit(found[ordered]), np.signbit(expected[ordered]))


def test_lanes_that_branch_meet_again(run: Run) -> None:
    body = """
      setp.lt.u32 %p1, %r0, 10;
      @%p1 bra $less;
      add.u32 %r5, %r4, 100;
      bra.uni $end;
    $less:
      add.u32 %r5, %r4, 200;
    $end:
      redux.sync.add.u32 %r5, %r5, -1;
    """
    assert (run(body + STORE) == sum(range(32)) + 22 * 100 + 10 * 200).all()


def test_blocks_and_shared_memory(run: Run) -> None:
    """Reverse the words of a block."""
    body = """
      mov.u32 %r6, shared;
      mad.lo.u32 %r7, %r0, 4, %r6;
      st.shared.u32 [%r7], %r4;
      bar.sync 0;
      sub.u32 %r8, %r2, %r0;
      mad.lo.u32 %r7, %r8, 4, %r6;
      ld.shared.u32 %r5, [%r7+-4];
    """
    found = run(body + STORE, blocks=3, threads=64)
    np.testing.assert_array_equal(found.reshape(3, 64), np.arange(192).reshape(3, 64)[:, ::-1])
    with pytest.raises(RuntimeError, match="a race: "):
        run((body + STORE).replace("bar.sync 0;", ""), blocks=3, threads=64)


@pytest.mark.parametrize(
    "body",
    [
        "@%p1 st.shared.u32 [shared], %r0; @!%p1 ld.shared.u8 %h1, [shared+3];",
        "@%p1 ld.shared.u32 %r5, [shared]; @!%p1 st.shared.u8 [shared+3], %r0;",
        "@%p1 st.shared.u32 [shared], %r0; @%p1 atom.shared.add.u32 %r5, [shared], 1; "
        "@!%p1 atom.shared.add.u32 %r5, [shared], 1;",
    ],
)
def test_races(run: Run, body: str) -> None:
    for seed in range(10):
        with pytest.raises(RuntimeError, match=r"a race: another warp has (read|written) byte"):
            run(f"setp.lt.u32 %p1, %r0, 32; {body}", threads=64, seed=seed)


def test_accesses_that_are_no_race(run: Run) -> None:
    for body in (
        "atom.shared.add.u32 %r5, [shared], 1;",
        "st.shared.u32 [shared], 7;",  # every thread stores the same
        "@%p1 st.shared.u32 [shared], %r0; bar.sync 0; ld.shared.u32 %r5, [shared];",
        "@%p1 st.shared.u16 [shared], %r0; @!%p1 st.shared.u16 [shared+2], %r0;",
        # predicates that are false in a whole warp
        "@%p1 shfl.sync.idx.b32 %r5, %r4, 5, 31, -1; setp.gt.u32 %p2, %r0, 100; @%p2 bar.sync 0;",
    ):
        run(f"setp.lt.u32 %p1, %r0, 32; {body}", threads=64)


def test_matrices_are_stored_as_they_are_loaded(run: Run) -> None:
    body = """
      mov.u32 %r6, shared;
      mad.lo.u32 %r7, %r0, 16, %r6;
      stmatrix.sync.aligned.m8n8.x2.shared.b16 [%r7], {%r4, %r0};
      bar.warp.sync -1;
      ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%r8, %r9}, [%r7];
      add.u32 %r5, %r8, %r9;
    """
    np.testing.assert_array_equal(run(body + STORE), 2 * np.arange(32))
    transposed = run(body.replace(".x2.shared", ".x2.trans.shared", 1) + STORE)
    assert not np.array_equal(transposed, 2 * np.arange(32))


# ---- faults ----


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("frob.b32 %r5, %r4;", r"frob.b32 %r5, %r4: the opcode frob.b32 is unknown"),
        ("add.f32 %f2, %f1, %f1;", "the opcode add.f32 is unknown"),
        ("add.rn.ftz.f32 %f2, %f1, %f1;", "the opcode add.rn.ftz.f32 is unknown"),
        ("sqrt.approx.f32 %f2, %f1;", "the opcode sqrt.approx.f32 is unknown"),
        ("add.s32 %r5, %rd1, 1;", "%rd1 has 64 bits, not 32"),
        ("bra $nowhere;", "there is no such label"),
        ("st.global.u32 [%rd4], %r9;", "a register that was never written"),
        ("setp.lt.u32 %p1, %r0, 5; @%p1 mov.u32 %r5, 1; st.global.u32 [%rd4], %r5;",
         "never written, in lane 5"),
        ("ld.global.u32 %r5, [%rd3+2];", "is not a multiple of 4"),
        ("ld.global.v2.u32 {%r5, %r6}, [%rd3];", "an address of lane 1 is not a multiple of 8"),
        ("ld.global.u32 %r5, [%rd3+4];", "lane 31 accesses memory that does not belong"),
        ("st.global.u32 [%rd3], %r4;", "or is read-only"),
        ("ld.shared.u32 %r5, [shared+1024];", "leaves shared memory"),
        ("st.local.u32 [depot+16], %r4;", "outside of local memory"),
        ("div.u32 %r5, %r4, %r0;", "division by zero"),
        ("setp.lt.u32 %p1, %r0, 5; @%p1 bra $x; ret; $x: shfl.sync.bfly.b32 %r5, %r4, 1, 31, 255;",
         "a lane that is named as a member has exited"),
        ("setp.lt.u32 %p1, %r0, 5; @%p1 bra $x; bar.sync 0; $x: shfl.sync.bfly.b32 %r5, %r4, 1, 31, -1; "
         "bar.sync 0;",
         "only a part of the warp is here"),
        ("shfl.sync.idx.b32 %r5, %r4, 5, 31, 15;", "not named as a member"),
        ("trap;", "the program stops itself"),
        ("$wait: ld.acquire.gpu.u32 %r5, [%rd1]; setp.eq.u32 %p1, %r5, 0; @%p1 bra $wait;",
         "no thread can go on"),
    ],
)  # fmt: skip
def test_faults(run: Run, interpreter: ModuleType, body: str, message: str) -> None:
    with pytest.raises(interpreter.Fault, match=re.escape(message) if "%" in message else message):
        run(body)


def test_a_fault_names_kernel_place_and_instruction(run: Run) -> None:
    with pytest.raises(
        RuntimeError, match=r"^toy, line 27 of the PTX, block 0, warp 0: st\.global\.u32 \[%rd4\], %r9: "
    ):
        run("\n\nst.global.u32 [%rd4], %r9;")


# ---- the memory model ----

MESSAGE = """
  setp.ne.u32 %p1, %r1, 0;
  @%p1 bra $reader;
  st.global.u32 [%rd1+64], 7;
  FENCE
  atom.exch.RELEASE.gpu.global.b32 %r6, [%rd1], 1;
  ret;
$reader:
  ld.global.u32 %r7, [%rd1+64];
$wait:
  ld.ACQUIRE.gpu.global.u32 %r6, [%rd1];
  setp.eq.u32 %p2, %r6, 0;
  @%p2 bra $wait;
  FENCE
  ld.global.u32 %r5, [%rd1+64];
  st.global.u32 [%rd1+4], %r5;
"""
"""Block 0 sends a number to block 1, which may have read the place before."""


def sent(run: Run, release: str, acquire: str, fence: str = "", **settings: Any) -> set[int]:
    """Return what block 1 has received, for many orders of the threads."""
    body = MESSAGE.replace("RELEASE", release).replace("ACQUIRE", acquire).replace("FENCE", fence)
    words = np.zeros(64, dtype=np.uint32)
    return {int(run(body, words, blocks=2, threads=1, seed=seed, **settings)[1]) for seed in range(30)}


def test_late_visibility(run: Run) -> None:
    assert sent(run, "release", "acquire", stale=True) == {7}
    assert sent(run, "relaxed", "relaxed", "fence.acq_rel.gpu;", stale=True) == {7}
    assert sent(run, "relaxed", "relaxed", "membar.gl;", stale=True) == {7}
    assert 0 in sent(run, "relaxed", "acquire", stale=True)
    assert 0 in sent(run, "release", "relaxed", stale=True)
    assert 0 in sent(run, "relaxed", "relaxed", "fence.acq_rel.cta;", stale=True)
    assert 0 in sent(run, "relaxed", "relaxed", "", stale=True)
    assert sent(run, "relaxed", "relaxed") == {7}


# ---- clusters ----

BARRIER = "barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;"
NEXT = """
  mov.u32 %r6, %cluster_ctarank;
  mov.u32 %r7, %cluster_nctarank;
  add.u32 %r8, %r6, 1;
  rem.u32 %r8, %r8, %r7;
  mov.u64 %rd5, shared;
  cvta.shared.u64 %rd5, %rd5;
  mul.wide.u32 %rd6, %r0, 4;
  add.s64 %rd5, %rd5, %rd6;
  mapa.u64 %rd7, %rd5, %r8;
"""
"""%rd5: a thread's place in its block's shared memory; %rd7: the same in the next block of the cluster."""
READ_NEXT = f"{NEXT} st.u32 [%rd5], %r4; {BARRIER} ld.u32 %r5, [%rd7]; {BARRIER} {STORE}"
WRITE_NEXT = f"{NEXT} st.u32 [%rd7], %r4; {BARRIER} ld.u32 %r5, [%rd5]; {STORE}"


def moved(blocks: int, threads: int, cluster: int, shift: int) -> Any:
    words = np.arange(blocks * threads).reshape(-1, cluster, threads)
    return np.roll(words, shift, axis=1).reshape(-1)


@pytest.mark.parametrize("cluster", [1, 2, 3, 16])
def test_clusters(run: Run, cluster: int) -> None:
    for seed in range(10):
        for residents in (1, 2 * cluster):
            at = {"blocks": 3 * cluster, "threads": 64, "cluster": cluster}
            settings = {**at, "residents": residents, "seed": seed}
            np.testing.assert_array_equal(run(READ_NEXT, **settings), moved(**at, shift=-1))
            np.testing.assert_array_equal(run(WRITE_NEXT, **settings), moved(**at, shift=1))


@pytest.mark.parametrize(
    ("body", "shift"),
    [
        (READ_NEXT.replace(".release", "").replace(".acquire", "").replace(".aligned", ""), -1),
        (READ_NEXT.replace("mapa.u64 %rd7, %rd5, %r8;", """
            mov.u32 %r9, shared; mapa.shared::cluster.u32 %r10, %r9, %r8; mad.lo.u32 %r10, %r0, 4, %r10;""")
         .replace("ld.u32 %r5, [%rd7];", "ld.shared::cluster.u32 %r5, [%r10];"), -1),
        (READ_NEXT.replace("ld.u32 %r5, [%rd7];", """
            cvta.to.shared::cluster.u64 %rd8, %rd7; ld.shared::cluster.u32 %r5, [%rd8];"""), -1),
        (READ_NEXT.replace("ld.u32 %r5, [%rd7];", """
            sub.s64 %rd8, %rd7, %rd6; shr.u32 %r9, %r0, 2; mul.wide.u32 %rd6, %r9, 16;
            add.s64 %rd8, %rd8, %rd6; ld.v4.u32 {%r9, %r10, %r11, %r12}, [%rd8];
            and.b32 %r13, %r0, 3;
            setp.eq.u32 %p1, %r13, 0; setp.eq.u32 %p2, %r13, 1; setp.eq.u32 %p3, %r13, 2;
            selp.b32 %r5, %r11, %r12, %p3; selp.b32 %r5, %r10, %r5, %p2; selp.b32 %r5, %r9, %r5, %p1;"""),
         -1),
        (WRITE_NEXT.replace("st.u32 [%rd7], %r4;", f"""
            st.u32 [%rd5], 0; {BARRIER} red.add.u32 [%rd7], %r4;"""), 1),
        (WRITE_NEXT.replace("st.u32 [%rd7], %r4;", f"""
            st.u32 [%rd5], 0; {BARRIER} atom.shared::cluster.exch.b32 %r9, [%r10], %r4;""")
         .replace("mapa.u64 %rd7, %rd5, %r8;", """
            mov.u32 %r9, shared; mapa.shared::cluster.u32 %r10, %r9, %r8; mad.lo.u32 %r10, %r0, 4, %r10;"""),
         1),
        # the own block's shared memory in the same way
        (f"{NEXT} mapa.u64 %rd7, %rd5, %r6; st.u32 [%rd7], %r4; ld.u32 %r5, [%rd5]; {STORE}", 0),
    ],
)  # fmt: skip
def test_forms_of_accesses_to_other_blocks(run: Run, body: str, shift: int) -> None:
    at = {"blocks": 8, "threads": 64, "cluster": 4}
    for seed in range(5):
        np.testing.assert_array_equal(run(body, **at, seed=seed), moved(**at, shift=shift))


def test_places_in_a_cluster(run: Run) -> None:
    for register, expected in (
        ("%cluster_ctarank", [0, 1, 2, 0, 1, 2]),
        ("%cluster_nctarank", [3] * 6),
        ("%clusterid.x", [0, 0, 0, 1, 1, 1]),
        ("%nclusterid.x", [2] * 6),
    ):
        found = run(f"mov.u32 %r5, {register}; {STORE}", blocks=6, threads=1, cluster=3)
        assert list(found) == expected


def test_barriers_of_cluster_and_block_order_accesses(run: Run) -> None:
    """Words go to the next block, there to another warp, and on to the block after it."""
    body = f"""
      {NEXT}
      xor.b32 %r9, %r0, 32;
      mul.wide.u32 %rd6, %r9, 4;
      mov.u64 %rd8, shared;
      cvta.shared.u64 %rd8, %rd8;
      add.s64 %rd8, %rd8, %rd6;
      st.u32 [%rd7], %r4; {BARRIER}
      ld.u32 %r10, [%rd8]; bar.sync 0;
      st.u32 [%rd5], %r10; bar.sync 0;
      ld.u32 %r10, [%rd8]; {BARRIER}
      st.u32 [%rd7], %r10; {BARRIER}
      ld.u32 %r5, [%rd5]; {STORE}
    """
    at = {"blocks": 8, "threads": 64, "cluster": 4}
    for seed in range(20):
        np.testing.assert_array_equal(run(body, **at, seed=seed), moved(**at, shift=2))
        for number in range(3):
            parts = body.split(BARRIER)
            planted = BARRIER.join(parts[: number + 1]) + "bar.sync 0;" + BARRIER.join(parts[number + 1 :])
            with pytest.raises(RuntimeError, match=r"a race: .* (read|written) byte|which has ended"):
                run(planted, **at, seed=seed)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (READ_NEXT.replace(BARRIER, "", 1), r"a race: another warp has (written|read) byte"),
        (READ_NEXT.replace(BARRIER, "bar.sync 0;", 1), "a race: "),
        (READ_NEXT.replace(".release", ".relaxed", 1), "a race: "),
        ("setp.lt.u32 %p1, %r0, 32; @%p1 st.shared.u32 [shared], %r0; barrier.cluster.arrive.relaxed; "
         "barrier.cluster.wait; @!%p1 ld.shared.u32 %r5, [shared];", "a race: "),
        (WRITE_NEXT.replace(BARRIER, "barrier.cluster.arrive.aligned;").replace(
            STORE, f"barrier.cluster.wait.aligned; {STORE}"), "a race: "),
        (WRITE_NEXT.replace("mapa.u64 %rd7, %rd5, %r8", "mapa.u64 %rd7, %rd5, 0"), "a race: "),
        (READ_NEXT.replace(f"{BARRIER} {STORE}", STORE), "shared memory of block [0-9], which has ended"),
        (READ_NEXT.replace("%rd5, %r8;", "%rd5, 4;"), "rank 4 in a cluster of 4 blocks"),
        (READ_NEXT.replace("%rd5, %r8;", "%rd0, %r8;"), "the generic address is not in shared memory"),
        (f"{NEXT} st.u32 [%rd7+1024], %r4;", "leaves shared memory"),
        (f"{NEXT} mov.u32 %r9, shared; mapa.shared::cluster.u32 %r9, %r9, %r8; ld.shared.u32 %r5, [%r9];",
         "leaves shared memory"),
        (f"{NEXT} mov.u32 %r9, shared; add.u32 %r9, %r9, 0x5000000; ld.shared::cluster.u32 %r5, [%r9];",
         "leaves the shared memory of the cluster"),
        ("barrier.cluster.wait.acquire.aligned;", "at which it has not arrived"),
        ("barrier.cluster.arrive.aligned; barrier.cluster.arrive.aligned;", "without having waited"),
        (f"setp.lt.u32 %p1, %r0, 32; @%p1 bar.sync 0; @!%p1 bra $x; bra $y; $x: {BARRIER} $y: ret;",
         "no thread can go on; some wait at this barrier"),
        (f"setp.lt.u32 %p1, %r0, 7; @%p1 bra $x; {BARRIER} ret; $x: bar.sync 0;", "only a part of the warp"),
        (f"mov.u32 %r6, %cluster_ctarank; setp.eq.u32 %p1, %r6, 2; @%p1 bra $x; {BARRIER} ret; "
         "$x: bar.sync 0; $wait: ld.acquire.gpu.u32 %r5, [%rd1]; setp.eq.u32 %p1, %r5, 0; @%p1 bra $wait;",
         "no thread can go on; some wait for this memory"),
        ("barrier.cluster.frob;", "the opcode barrier.cluster.frob is unknown"),
        ("barrier.cluster.arrive.acquire;", "is unknown"),
    ],
)  # fmt: skip
def test_faults_of_clusters(run: Run, interpreter: ModuleType, body: str, message: str) -> None:
    for seed in range(10):
        with pytest.raises(interpreter.Fault, match=message):
            run(body, blocks=8, threads=64, cluster=4, seed=seed)


def test_blocks_of_a_cluster_may_store_the_same(run: Run) -> None:
    body = WRITE_NEXT.replace("%rd7], %r4", "%rd7], 5").replace("%rd5, %r8;", "%rd5, 0;")
    found = run(body, blocks=4, threads=64, cluster=4).reshape(4, 64)
    assert (found[0] == 5).all()


def test_a_grid_is_a_multiple_of_its_clusters(run: Run) -> None:
    with pytest.raises(RuntimeError, match="6 blocks in clusters of 4"):
        run(READ_NEXT, blocks=6, cluster=4)


def test_a_machine_forgets_the_accesses_of_earlier_launches(interpreter: ModuleType) -> None:
    words = np.zeros(4096, dtype=np.uint32)
    machine = interpreter.Machine()
    machine.add_memory(words.ctypes.data, words.nbytes)
    kernel = interpreter.Kernel(HEAD + READ_NEXT + "ret; }")
    for cluster in (4, 1, 2, 16, 3, 4):
        arguments = [words.ctypes.data, words.ctypes.data]
        machine.run(kernel, 2 * cluster, 64, 0, 2 * cluster, arguments, blocks_per_cluster=cluster)


def test_the_barrier_of_a_cluster_publishes_stores(run: Run) -> None:
    body = f"""
      ld.global.u32 %r5, [%rd1+64];
      setp.eq.u32 %p1, %r1, 0;
      @%p1 st.global.u32 [%rd1+64], 7;
      {BARRIER}
      ld.global.u32 %r5, [%rd1+64];
      add.u64 %rd4, %rd4, 0;
      {STORE}
    """
    words = np.zeros(64, dtype=np.uint32)
    at = {"blocks": 2, "threads": 1, "cluster": 2, "stale": True}

    def received(body: str) -> set[int]:
        return {int(run(body, words, **at, seed=seed)[1]) for seed in range(20)}

    assert received(body) == {7}
    assert received(body.replace("release", "relaxed")) == {0}
    assert received(body.replace(BARRIER, "")) == {0}
    late = body.replace(BARRIER, "").replace("@%p1 st", "barrier.cluster.arrive; @%p1 st")
    assert received(late.replace("7;", "7; barrier.cluster.wait;")) == {0}  # stored after the release


# ---- counts ----


def counts(run: Run, interpreter: ModuleType, body: str, **settings: Any) -> dict[str, int]:
    """Return the counts that a body adds to those of an empty one."""
    taken = []
    for text in (body, ""):
        machine = interpreter.Machine()
        machine.counting = True
        words = np.zeros(4096, dtype=np.uint32)
        machine.add_memory(words.ctypes.data, words.nbytes)
        address = words.ctypes.data // 128 * 128 + 128
        kernel = interpreter.Kernel(HEAD + text + "\n  ret;\n}\n")
        machine.run(kernel, 1, 32, 0, 1, [address, address])
        (launch,) = machine.take_launches()
        taken.append(launch)
    return {name: value - taken[1][name] for name, value in taken[0].items() if isinstance(value, int)}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("st.global.u32 [%rd4], %r0;", {"global_sectors": 4, "ideal_sectors": 4, "bytes_written": 128}),
        ("mul.wide.u32 %rd5, %r0, 32; add.s64 %rd5, %rd0, %rd5; ld.global.u32 %r5, [%rd5];",
         {"global_sectors": 32, "ideal_sectors": 4, "bytes_read": 1024, "warp_instructions": 3}),
        ("ld.global.u32 %r5, [%rd0];", {"global_sectors": 1, "ideal_sectors": 1}),
        ("mov.u32 %r6, shared; mad.lo.u32 %r7, %r0, 4, %r6; st.shared.u32 [%r7], %r0;",
         {"shared_wavefronts": 1, "ideal_wavefronts": 1}),
        ("mov.u32 %r6, shared; mad.lo.u32 %r7, %r0, 8, %r6; st.shared.u32 [%r7], %r0;",
         {"shared_wavefronts": 2, "ideal_wavefronts": 1}),
        ("mov.u32 %r6, shared; mad.lo.u32 %r7, %r0, 16, %r6; st.shared.v4.u32 [%r7], {%r0, %r0, %r0, %r0};",
         {"shared_wavefronts": 4, "ideal_wavefronts": 4}),
        ("atom.add.global.u32 %r5, [%rd0], 1;", {"global_atomics": 32, "most_atomics_on_one_address": 32}),
        ("setp.lt.u32 %p1, %r0, 8; @%p1 add.u32 %r5, %r0, 1;",
         {"warp_instructions": 2, "thread_instructions": 40}),
        ("bar.sync 0;", {"block_barriers": 1}),
        ("st.local.u32 [depot], %r0;", {"local_requests": 1}),
    ],
)  # fmt: skip
def test_counts(run: Run, interpreter: ModuleType, body: str, expected: dict[str, int]) -> None:
    found = counts(run, interpreter, body)
    assert {name: found[name] for name in expected} == expected


def test_counts_of_clusters(interpreter: ModuleType) -> None:
    """Every block adds to a counter of block 0, and reads the words of the next block."""
    body = f"""
      {NEXT}
      mov.u64 %rd8, shared;
      cvta.shared.u64 %rd8, %rd8;
      mapa.u64 %rd8, %rd8, 0;
      setp.eq.u32 %p1, %r6, 0;
      @%p1 st.shared.u32 [shared], 0;
      {BARRIER}
      atom.add.u32 %r5, [%rd8], 1;
      {BARRIER}
      ld.v2.u32 {{%r9, %r10}}, [%rd8];
      {BARRIER}
    """
    machine = interpreter.Machine()
    machine.counting = True
    words = np.zeros(4096, dtype=np.uint32)
    machine.add_memory(words.ctypes.data, words.nbytes)
    arguments = [words.ctypes.data, words.ctypes.data]
    machine.run(interpreter.Kernel(HEAD + body + "ret; }"), 8, 64, 0, 8, arguments, blocks_per_cluster=4)
    (launch,) = machine.take_launches()
    assert launch["blocks_per_cluster"] == 4
    assert launch["cluster_barriers"] == 3
    assert launch["cluster_atomics"] == 2 * 3 * 64
    assert launch["shared_atomics"] == 2 * 64
    assert launch["cluster_requests"] == 2 * 3 * 2 * 2  # clusters, blocks, warps; an addition and a load
    assert launch["shared_requests"] == 2 * 2 * 3  # the own ones of block 0, with its store
    assert launch["global_atomics"] == launch["releases"] == 0
