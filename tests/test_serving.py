"""Kernels loaded before the first request, and what `freeze` forbids, on the stub driver."""

import itertools
import re
from typing import Any

import pytest
import torch

import softmax_ops
from softmax_ops import driver, launcher, serving
from softmax_ops.launcher import NotLoaded
from tests.support import stub_driver
from tests.support.geometries import geometry
from tests.support.launches import STREAM, Serve, launch, names, plan_for, serve, serve_all
from tests.support.stub_driver import isolated

__all__ = ["serve"]  # a fixture


@isolated
def test_a_shape_loads_the_kernels_of_either_alignment(serve: Serve) -> None:
    serve_all(serve, "fwd_bf16_causal_warp")
    loaded = softmax_ops.warm_up((3, 5, 1000), dtype="bf16", causal=True)
    assert loaded == [
        "softmax_fwd_bf16_causal_warp_k1024_v8_t128r4",
        "softmax_fwd_bf16_causal_warp_k1024_v1_t128r4",
    ]
    assert names().count("cuLibraryLoadData") == 2 and "cuLaunchKernelEx" not in names()


@isolated
def test_a_shape_loads_the_kernels_of_rows_together_and_apart(serve: Serve) -> None:
    serve_all(serve, "fwd_f16_none")
    assert softmax_ops.warm_up((3, 5, 49)) == [
        "softmax_fwd_f16_none_tile_k64_v1_t256r128",
        "softmax_fwd_f16_none_warp_k64_v1_t128r32",
    ]


@isolated
def test_calls_of_every_kind(serve: Serve) -> None:
    """A mask, the backward, rows shared by the CTAs of a cluster; a single row; nothing to compute."""
    serve_all(serve, "f16_boolcausal_warp", "bwd_f16_causal_warp", "fwd_f32_none_cluster")
    call = softmax_ops.Call
    masked = softmax_ops.warm_up(call((3, 5, 1000), "f16", mask_shape=(3, 1, 1000)))
    assert [name.split("_")[3] for name in masked] == ["boolcausal", "boolcausal"]
    (aligned, _) = softmax_ops.warm_up(call((3, 5, 1000), "float16", mask_shape=(1000,), backward=True))
    assert aligned.startswith("softmax_bwd_f16_causal_warp")
    assert len(softmax_ops.warm_up(call((50000,), "f32"), call((4, 50000), "f32"))) == 2
    permitted = names().count("cuKernelSetAttribute")
    assert softmax_ops.warm_up(call((2, 250000), "f32")) and names().count("cuKernelSetAttribute") == permitted + 2
    assert softmax_ops.warm_up((0, 5, 1000), (3, 0)) == []


@isolated
def test_general_calls(serve: Serve) -> None:
    """Other kernels; the backward of a wider result reads the dtype that its forward writes."""
    forward = [f"f16_{kind}_warp" for kind in ("general", "band", "bias", "none", "causal")]
    backward = "f32tof16_general_warp", "bwd_f32_causal_warp"
    serve_all(serve, *forward, "f16tof32_general_warp", "f16tof32_band_warp", *backward)
    call = softmax_ops.Call
    found = [
        softmax_ops.warm_up(call((2, 5, 64), "f16", general=True)),
        softmax_ops.warm_up(call((2, 5, 64), "f16", causal=True, result_dtype="float32")),
        softmax_ops.warm_up(call((2, 5, 64), "f16", result_dtype="f32", backward=True)),
    ]
    heads = [{"_".join(name.split("_")[1:4]) for name in each} for each in found]
    assert heads == [
        {"fwd_f16_general", "fwd_f16_band", "fwd_f16_bias", "fwd_f16_none", "fwd_f16_causal"},
        {"fwd_f16tof32_band", "fwd_f16tof32_general"},
        {"bwd_f32tof16_general", "bwd_f32_causal"},
    ]
    assert [len(set(each)) for each in found] == [9, 3, 4]


def test_a_general_call_covers_what_its_features_reduce_to() -> None:
    """Every kernel of forwards and gradients with one feature or two, whose gradient may be a plain one."""
    x = torch.zeros(2, 4, 128, 1024, dtype=torch.float16)
    mask = torch.zeros(128, 1024, dtype=torch.bool)
    features: list[dict[str, Any]] = [
        *({"bias": x}, {"bias": x.float()}, {"alibi_slopes": torch.zeros(4)}, {"return_lse": True}, {"mask": mask}),
        *({"window": (None, 0)}, {"window": (5, 0)}, {"softcap": 5.0}, {"scale": torch.ones(128)}, {"log": True}),
    ]
    for dtype in (torch.float16, torch.float32):
        for backward in (False, True):
            call = softmax_ops.Call(x.shape, "f16", general=True, backward=backward, result_dtype=dtype)
            covered = {
                masked: {plan_for(each).variant.name for each in serving._geometries(call._replace(mask_shape=masked))}
                for masked in (None, mask.shape)
            }
            for one, two in itertools.combinations([{}, *features], 2):
                if backward and ("softcap" in one or "softcap" in two) and {"bias", "alibi_slopes"} & {*one, *two}:
                    continue  # has no gradient
                shape = mask.shape if "mask" in one | two else None
                said = softmax_ops.explain(x, dtype=dtype, backward=backward, **(one | two))
                assert said.variant in covered[shape], (one.keys(), two.keys(), backward, dtype)
                if backward and "bias" in one:  # in float32, if the bias is
                    said = softmax_ops.explain(x.float(), backward=True, **two)
                    assert said.variant in covered[shape], (two.keys(), dtype)


@isolated
def test_masks_of_float_dtypes(serve: Serve) -> None:
    """Those of transformer_softmax_lib: masks of the scores' dtype have kernels, others are converted to bool."""
    serve_all(serve, "fwd_f16_like_warp", "fwd_f32_like_warp", "fwd_f32_boolcausal_warp", "fwd_f64_general_warp")
    shape = (2, 4, 16, 64)

    def kinds(dtype: str, mask_dtype: object) -> set[str]:
        loaded = softmax_ops.warm_up(serving.Call(shape, dtype, (2, 1, 16, 64), mask_dtype=mask_dtype))
        return {"_".join(name.split("_")[2:4]) for name in loaded}

    assert kinds("f16", torch.float16) == {"f16_like"} and kinds("f32", "f32") == {"f32_like"}
    assert kinds("f32", "f16") == kinds("f32", "uint8") == {"f32_boolcausal"}
    assert kinds("f64", "f64") == {"f64_general"}
    softmax_ops.freeze()
    for alignment in (16, 2):
        launch(plan_for(geometry(shape, mask_kind="like", mask_shape=(2, 1, 16, 64), alignment=alignment)))


@isolated
def test_what_was_warmed_up_runs_in_a_capture_and_frozen(serve: Serve) -> None:
    """With other strides too: another plan, but the same kernel."""
    serve_all(serve, "fwd_f16_none_warp")
    softmax_ops.warm_up((3, 5, 1000))
    softmax_ops.freeze()
    stub_driver.capture(STREAM)
    launch(plan_for(geometry((3, 5, 1000))))
    launch(plan_for(geometry((7, 1000), strides={"x": (2000, 1)})))
    launch(plan_for(geometry((3, 5, 1000), alignment=2)))
    assert names().count("cuLaunchKernelEx") == 3


@isolated
@pytest.mark.parametrize("apart", [False, True])
def test_a_graph_may_be_captured_on_aligned_copies(serve: Serve, apart: bool) -> None:
    """As a compiler does after a call on unaligned tensors. A kernel that is missing fails no other call."""
    serve_all(serve, "fwd_f16_none_warp_k1024_v1" if apart else "fwd_f16_none_warp")
    launch(plan_for(geometry((3, 5, 1000), alignment=2)))
    stub_driver.capture(STREAM)
    if apart:
        with pytest.raises(NotLoaded, match="_v8_"):
            launch(plan_for(geometry((3, 5, 1000))))
        return
    launch(plan_for(geometry((3, 5, 1000))))
    assert names().count("cuLaunchKernelEx") == 2 and names().count("cuLibraryLoadData") == 2


@isolated
def test_freeze_forbids_loading_and_can_be_lifted(serve: Serve) -> None:
    serve_all(serve, "fwd_f16_none_warp")
    found = plan_for(geometry((3, 5, 1000)))
    softmax_ops.freeze()
    stub_driver.forget()
    with pytest.raises(NotLoaded, match=r"is not loaded on device 0, .*freeze.*warm_up.* scores \(3, 5, 1000\) of f16"):
        launch(found)
    assert "cuLibraryLoadData" not in names()
    softmax_ops.freeze(False)
    launch(found)


@isolated
def test_a_second_device_is_warmed_up_by_itself(serve: Serve) -> None:
    stub_driver.devices("sm_90", "sm_90")
    serve_all(serve, "fwd_f16_none_warp")
    softmax_ops.warm_up((3, 5, 1000))
    softmax_ops.freeze()
    with pytest.raises(NotLoaded, match="on device 1"):
        launcher.executable(plan_for(geometry((3, 5, 1000))), 1)
    softmax_ops.freeze(False)
    softmax_ops.warm_up((3, 5, 1000), device=1)
    softmax_ops.freeze()
    launch(plan_for(geometry((3, 5, 1000))), device=1)
    assert names().count("cuLibraryLoadData") == 2, "both alignments, once for both devices"


@isolated
@pytest.mark.parametrize("own", [0, 1, 2])
def test_the_context_is_afterwards_what_it_was(serve: Serve, own: int) -> None:
    """None, that of device 0, or that of device 1, where kernels are loaded."""
    stub_driver.devices("sm_90", "sm_90")
    serve_all(serve, "fwd_f16_none_warp")
    driver.architecture(0)  # initialises the driver
    driver.check("cuCtxSetCurrent", driver.cuda.cuCtxSetCurrent(own))
    softmax_ops.warm_up((3, 5, 1000), device="cuda:1")
    assert int(driver.check("cuCtxGetCurrent", driver.cuda.cuCtxGetCurrent())) == own


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (serving.Call((3, 5), "int8"), "dtype is 'int8'; want one of f16, bf16, f32, f64"),
        (serving.Call((3, 5), "f16", result_dtype="int8"), "result_dtype is 'int8'; want one of f16, bf16, f32, f64"),
        (serving.Call((), "f16"), r"shape is \(\)"),
        (serving.Call((3, -1), "f16"), r"shape is \(3, -1\)"),
        (serving.Call((3, 5), "f32", mask_shape=(3, 5), mask_dtype="int8"), "mask_dtype is 'int8'; want bool or uint8"),
        (
            serving.Call((3, 5), mask_shape=(5,), mask_dtype="f16", causal=True),
            "mask_dtype is 'f16'; want bool or uint8",
        ),
        (serving.Call((3, 5), mask_shape=(5,), mask_dtype="int32"), "mask_dtype is 'int32'; want bool or uint8"),
        (serving.Call((3, 5), "f32", result_dtype="f16"), "result_dtype is f16 and dtype f32; want f32 for f16"),
        (serving.Call((0, 5), "f16", mask_shape=(2, 5)), r"a mask of shape \(2, 5\) does not broadcast to \(0, 5\)"),
        (serving.Call((3, 5), "f16", mask_shape=(2, 5)), r"a mask of shape \(2, 5\) does not broadcast to \(3, 5\)"),
    ],
)
def test_calls_that_are_none(call: serving.Call, says: str) -> None:
    with pytest.raises(ValueError, match=f"^warm_up: {says}"):
        list(serving._geometries(call))


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (serving.Call(5, "f16"), "shape is 5; want the sizes of scores"),  # type: ignore[arg-type]
        (serving.Call("ab", "f16"), "shape is 'ab'; want the sizes of scores"),  # type: ignore[arg-type]
        (serving.Call((3, 5.0), "f16"), r"shape is \(3, 5.0\)"),  # type: ignore[arg-type]
        (serving.Call((3, 5), mask_shape=5), "mask_shape is 5; want the sizes of the mask"),  # type: ignore[arg-type]
        (serving.Call((3, 5), mask_shape=(None,)), r"mask_shape is \(None,\); want"),  # type: ignore[arg-type]
        (serving.Call((3, 5), "f16", causal="no"), "causal is 'no'; want True or False"),  # type: ignore[arg-type]
        (serving.Call((3, 5), "f16", batch_invariant=5), "batch_invariant is 5; want"),  # type: ignore[arg-type]
        (serving.Call((3, 5), general=torch.zeros(2)), r"general is tensor\(\[0., 0.\]\); want True or False"),  # type: ignore[arg-type]
    ],
)
def test_calls_of_wrong_types(call: serving.Call, says: str) -> None:
    with pytest.raises(TypeError, match=f"^warm_up: {says}"):
        list(serving._geometries(call))


def test_a_mask_that_is_converted_is_read_as_bool() -> None:
    """One of another float dtype than the scores', as transformer_softmax_lib takes it."""
    converted = serving.Call((3, 5), "f16", mask_shape=(5,), mask_dtype=torch.float32)
    assert [*serving._geometries(converted)] == [*serving._geometries(converted._replace(mask_dtype="bool"))]
    assert [*serving._geometries(converted)] != [*serving._geometries(converted._replace(mask_dtype="f16"))]


@pytest.mark.parametrize("device", [torch.device("cuda"), "cuda", None, 0.0])
def test_a_device_is_an_ordinal(device: Any) -> None:
    with pytest.raises(TypeError, match=rf"device is {re.escape(repr(device))}; want the ordinal of a GPU"):
        softmax_ops.warm_up((3, 5), device=device)


def test_facts_are_those_of_shapes() -> None:
    with pytest.raises(
        TypeError, match=r"every call is a Call, .* dtype, causal given as well; .*_replace\(dtype=\.\.\.\)"
    ):
        softmax_ops.warm_up(softmax_ops.Call((3, 5)), dtype="bf16", causal=True)


@pytest.mark.parametrize("frozen", ["no", None, 1])
def test_freeze_takes_a_bool(frozen: Any) -> None:
    with pytest.raises(TypeError, match=re.escape(f"freeze: frozen is {frozen!r}; want True, or False")):
        softmax_ops.freeze(frozen)
    assert not launcher._frozen
