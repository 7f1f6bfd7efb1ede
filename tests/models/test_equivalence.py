"""The three block forms are one function, in values, gradients, statistics and training."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from resnext_jax.models import convert_form, create_model
from resnext_jax.models.blocks import (
    BLOCKS,
    FORMS,
    SE_BOTTLENECK,
    Aggregation,
    BlockSpec,
    BottleneckA,
    BottleneckC,
    Branch,
    Form,
    Residual,
    SEBottleneckC,
    TwoLayerA,
)
from resnext_jax.models.equivalence import convert_arrays, convert_state, widen_two_layers
from resnext_jax.models.layers import LayerOptions
from resnext_jax.models.variables import merge, skeleton, split
from resnext_jax.ops import BatchNorm
from resnext_jax.optim.optimizers import sgd
from tests.numerics import relative_difference, worst_difference

Arrays = dict[str, jax.Array]


def options_of(dtype: str) -> LayerOptions:
    return LayerOptions(dtype=jnp.dtype(dtype), param_dtype=jnp.dtype(dtype))


def randomise(module: Any, seed: int = 1) -> Any:
    """Give batch norm parameters and statistics values that a wrong map would mix up."""
    graphdef, params, batch_stats = split(module)
    rng = np.random.default_rng(seed)

    def change(arrays: Arrays) -> Arrays:
        return {
            name: array
            if name.endswith("kernel")
            else jnp.asarray(rng.uniform(0.5, 1.5, array.shape), array.dtype)
            for name, array in arrays.items()
        }

    return merge(graphdef, change(params), change(batch_stats))


def images(channels: int, dtype: str) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).normal(size=(4, 6, 6, channels)), dtype)


def evaluate(module: Any, x: jax.Array) -> tuple[jax.Array, jax.Array, Arrays, Arrays]:
    """Return output, input gradient, parameter gradients and new running statistics."""
    graphdef, params, batch_stats = split(module)

    @jax.jit
    def run(params: Arrays, x: jax.Array) -> Any:
        def loss(params: Arrays, x: jax.Array) -> tuple[jax.Array, Any]:
            network = merge(graphdef, params, batch_stats)
            y = network(x)
            weights = jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)
            return jnp.sum(weights * y), (y, split(network)[2])

        (_, aux), gradients = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, x)
        return aux, gradients

    (y, new_stats), (parameter_gradients, input_gradient) = run(params, x)
    return y, input_gradient, parameter_gradients, new_stats


BLOCK_CASES = [
    # C, d, stride, channels in, channels out
    (4, 2, 1, 12, 12),
    (3, 5, 2, 12, 12),
    (2, 8, 1, 8, 12),
    (8, 1, 2, 6, 16),
    (1, 6, 1, 12, 12),
]


def block_of(
    case: tuple[int, int, int, int, int],
    form: Form,
    dtype: str,
    block: type[Residual] = BottleneckC,
) -> Any:
    cardinality, width, stride, inputs, outputs = case
    spec = BlockSpec(inputs, outputs, cardinality, width, strides=stride, options=options_of(dtype))
    return convert_form(randomise(block(spec, rngs=nnx.Rngs(0))), form)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("case", "block"),
    [
        *((case, BottleneckC) for case in BLOCK_CASES),
        (BLOCK_CASES[1], SEBottleneckC),
        pytest.param(BLOCK_CASES[3], SEBottleneckC, marks=pytest.mark.slow),
    ],
)
def test_blocks_agree_in_float64(
    case: tuple[int, int, int, int, int], block: type[Residual]
) -> None:
    cardinality, inputs = case[0], case[3]
    x = images(inputs, "float64")
    y, dx, gradients, stats = evaluate(block_of(case, "c", "float64", block), x)
    for form in ("a", "b"):
        y_form, dx_form, gradients_form, stats_form = evaluate(
            block_of(case, form, "float64", block), x
        )
        assert relative_difference(y_form, y) < 1e-9
        assert relative_difference(dx_form, dx) < 1e-9
        mapped = convert_arrays(gradients_form, cardinality, form, "c")
        assert worst_difference(mapped, gradients) < 1e-9
        assert worst_difference(convert_arrays(stats_form, cardinality, form, "c"), stats) < 1e-9


@pytest.mark.parametrize(
    "case",
    [
        case if case[2] == 2 else pytest.param(case, marks=pytest.mark.slow)  # the other stride
        for case in BLOCK_CASES
    ],
)
def test_blocks_agree_in_float32(case: tuple[int, int, int, int, int]) -> None:
    with jax.default_matmul_precision("highest"):
        x = images(case[3], "float32")
        y, dx, gradients, _ = evaluate(block_of(case, "c", "float32"), x)
        for form in ("a", "b"):
            y_form, dx_form, gradients_form, _ = evaluate(block_of(case, form, "float32"), x)
            assert relative_difference(y_form, y) < 1e-4
            assert relative_difference(dx_form, dx) < 1e-2
            mapped = convert_arrays(gradients_form, case[0], form, "c")
            assert worst_difference(mapped, gradients) < 1e-2


def small_network(form: Form, dtype: str = "float64") -> Any:
    return create_model(
        "resnext11_3x2d",
        num_classes=5,
        form=form,
        stem_width=6,
        template_width=8,
        rngs=nnx.Rngs(0),
        dtype=jnp.dtype(dtype),
        param_dtype=jnp.dtype(dtype),
    )


def train(model: Any, steps: int, state: Any = None) -> tuple[Any, Any]:
    """SGD with momentum and weight decay at rate 0.01; returns model and optimiser state."""
    graphdef, params, batch_stats = split(model)
    optimizer = sgd(lambda step: jnp.asarray(0.01), momentum=0.9, nesterov=True, weight_decay=1e-2)
    state = optimizer.init(params) if state is None else state
    x = images(3, params["fc.kernel"].dtype.name)

    @jax.jit
    def step(params: Arrays, batch_stats: Arrays, state: Any) -> Any:
        def loss(params: Arrays) -> tuple[jax.Array, Arrays]:
            network = merge(graphdef, params, batch_stats)
            log_probabilities = jax.nn.log_softmax(network(x))
            return -log_probabilities[jnp.arange(4), jnp.arange(4)].mean(), split(network)[2]

        gradients, batch_stats_new = jax.grad(loss, has_aux=True)(params)
        updates, new_state = optimizer.update(gradients, state, params)
        return jax.tree.map(jnp.add, params, updates), batch_stats_new, new_state

    for _ in range(steps):
        params, batch_stats, state = step(params, batch_stats, state)
    return merge(graphdef, params, batch_stats), state


def train_block(block: Any, x: jax.Array) -> tuple[jax.Array, Arrays, Arrays, Any]:
    """Three SGD steps at rate 0.01; returns the last output, arrays and optimiser state."""
    graphdef, params, batch_stats = split(block)
    optimizer = sgd(lambda step: jnp.asarray(0.01), momentum=0.9, nesterov=True, weight_decay=1e-2)
    state = optimizer.init(params)

    @jax.jit
    def step(params: Arrays, batch_stats: Arrays, state: Any) -> Any:
        def loss(params: Arrays) -> tuple[jax.Array, Any]:
            module = merge(graphdef, params, batch_stats)
            y = module(x)
            return jnp.mean(jnp.square(y - 1)), (y, split(module)[2])

        gradients, (y, new_stats) = jax.grad(loss, has_aux=True)(params)
        updates, new_state = optimizer.update(gradients, state, params)
        return y, jax.tree.map(jnp.add, params, updates), new_stats, new_state

    for _ in range(3):
        y, params, batch_stats, state = step(params, batch_stats, state)
    return y, params, batch_stats, state


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    "case",
    [
        case if case[2] == 2 else pytest.param(case, marks=pytest.mark.slow)  # the other stride
        for case in BLOCK_CASES
    ],
)
def test_blocks_train_the_same(case: tuple[int, int, int, int, int]) -> None:
    """Outputs, parameters, statistics and momentum after three steps with decay."""
    cardinality, x = case[0], images(case[3], "float64")
    y, params, stats, state = train_block(block_of(case, "c", "float64"), x)
    for form in ("a", "b"):
        y_form, params_form, stats_form, state_form = train_block(
            block_of(case, form, "float64"), x
        )
        assert relative_difference(y_form, y) < 1e-9
        mapped = convert_arrays(params_form, cardinality, form, "c")
        assert worst_difference(mapped, params) < 1e-9
        assert worst_difference(convert_arrays(stats_form, cardinality, form, "c"), stats) < 1e-9
        momentum = jax.tree.leaves(convert_state(state_form, cardinality, form, "c"))
        for ours, theirs in zip(momentum, jax.tree.leaves(state), strict=True):
            assert relative_difference(ours, theirs) < 1e-9


@pytest.mark.parametrize(
    ("dtype", "output", "gradient"),
    [
        ("float64", 1e-9, 1e-9),
        pytest.param("float32", 1e-4, 1e-2, marks=pytest.mark.slow),
    ],
)
def test_a_whole_network_agrees(dtype: str, output: float, gradient: float) -> None:
    with jax.enable_x64(dtype == "float64"), jax.default_matmul_precision("highest"):
        x = images(3, dtype)
        y, dx, gradients, stats = evaluate(small_network("c", dtype), x)
        for form in ("a", "b"):
            y_form, dx_form, gradients_form, stats_form = evaluate(small_network(form, dtype), x)
            assert relative_difference(y_form, y) < output
            assert relative_difference(dx_form, dx) < gradient
            mapped = convert_arrays(gradients_form, 3, form, "c")
            assert worst_difference(mapped, gradients) < gradient
            assert worst_difference(convert_arrays(stats_form, 3, form, "c"), stats) < output


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
def test_a_whole_network_trains_the_same_in_every_form() -> None:
    expected, expected_state = train(small_network("c"), 3)
    for form in ("a", "b"):
        model, state = train(small_network(form), 3)
        back = convert_form(model, "c")
        for part, expected_part in zip(split(back)[1:], split(expected)[1:], strict=True):
            assert worst_difference(part, expected_part) < 1e-9
        momentum = jax.tree.leaves(convert_state(state, 3, form, "c"))
        for ours, theirs in zip(momentum, jax.tree.leaves(expected_state), strict=True):
            assert relative_difference(ours, theirs) < 1e-9


@pytest.mark.slow  # blocks change form with their optimiser's state above
@pytest.mark.usefixtures("float64")
def test_a_run_can_change_form_half_way() -> None:
    expected, _ = train(small_network("c"), 4)
    model, state = train(small_network("c"), 2)
    model, _ = train(convert_form(model, "a"), 2, convert_state(state, 3, "c", "a"))
    assert worst_difference(split(convert_form(model, "c"))[1], split(expected)[1]) < 1e-9


@pytest.mark.parametrize(("source", "to"), [*itertools.product(FORMS, FORMS)])
def test_all_directions_give_one_function(source: Form, to: Form) -> None:
    model = small_network(source, "float32")
    converted = convert_form(model, to)
    assert converted.spec.form == to
    assert type(converted.stages["conv2"][0]) is BLOCKS[to]
    x = images(3, "float32")
    assert relative_difference(converted(x), model(x)) < 1e-4


def test_there_and_back_is_bit_for_bit() -> None:
    model = randomise(small_network("a", "float32"))
    back = convert_form(convert_form(convert_form(model, "b"), "c"), "a")
    for ours, original in zip(split(back)[1:], split(model)[1:], strict=True):
        assert list(ours) == list(original)
        assert all((ours[name] == original[name]).all() for name in original)


@pytest.mark.parametrize("form", ["a", "b"])
def test_initialised_as_the_conversion_of_form_c(form: Form) -> None:
    expected = split(convert_form(small_network("c", "float32"), form))[1]
    actual = split(small_network(form, "float32"))[1]
    assert all((actual[name] == expected[name]).all() for name in expected)


@pytest.mark.parametrize("form", ["a", "b"])
def test_squeeze_and_excitation_is_not_touched(form: Form) -> None:
    params = split(block_of(BLOCK_CASES[1], "c", "float32", SEBottleneckC))[1]
    converted = block_of(BLOCK_CASES[1], form, "float32", SEBottleneckC)
    assert type(converted) is SE_BOTTLENECK.of(form)
    own = {name: array for name, array in split(converted)[1].items() if name.startswith("se.")}
    assert own.keys() == {name for name in params if name.startswith("se.")}
    assert all((array == params[name]).all() for name, array in own.items())


def test_networks_of_the_family_change_form() -> None:
    """With deep stem, pooled shortcuts and squeeze-and-excitation."""

    def build(form: Form) -> Any:
        model = create_model("seresnext14d_3x2d", template_width=8, rngs=nnx.Rngs(0))
        return convert_form(convert_form(model, form), "c")

    expected = skeleton(lambda rngs: create_model("seresnext14d_3x2d", template_width=8, rngs=rngs))
    for form in ("a", "b"):
        again = nnx.eval_shape(lambda form=form: build(form))
        assert [split(again)[i] == split(expected)[i] for i in (1, 2)] == [True, True]


def test_layers_of_other_modules_are_not_mistaken_for_the_block_s() -> None:
    """Whatever a block of one's own calls its layers."""
    own = {
        "stages.conv2.0.gate.conv1.kernel": jnp.ones((1, 1, 2, 3)),
        "gate.norm1.bias": jnp.ones(5),
    }
    for form in ("a", "b"):
        assert convert_arrays(own, 2, "c", form).keys() == own.keys()


def test_basic_blocks_have_one_form() -> None:
    model = skeleton(lambda rngs: create_model("resnet18", rngs=rngs))
    with pytest.raises(ValueError, match="Basic blocks do not exist in form 'a'"):
        convert_form(model, "a")


def test_the_mode_is_kept() -> None:
    model = small_network("c", "float32")
    assert not convert_form(model, "a").stem.norm.use_running_average
    model.eval()
    assert convert_form(model, "a").stem.norm.use_running_average


def test_unlike_branches_have_no_other_form() -> None:
    spec = BlockSpec(4, 4, 2, 2)
    unlike = Aggregation(
        [
            Branch(spec, returns_to_width=True, rngs=nnx.Rngs(0)),
            spec.options.conv(4, 4, 3, rngs=nnx.Rngs(0)),
        ]
    )
    with pytest.raises(TypeError, match="Aggregation has no form other than its own") as caught:
        convert_form(unlike, "b")
    assert "\n" not in str(caught.value)


def test_frozen_stages_stay_frozen() -> None:
    model = small_network("c", "float32")
    model.stages["conv2"].eval()
    for form in ("a", "b", "c"):
        converted = convert_form(model, form)
        frozen = {
            str(path[:2]): norm.use_running_average
            for path, norm in nnx.iter_modules(converted)
            if isinstance(norm, BatchNorm)
        }
        assert {name for name, value in frozen.items() if value} == {"('stages', 'conv2')"}


class _TanhBranch(Branch):
    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.tanh(super().__call__(x))


def unlike_branches(kind: str) -> list[nnx.Module]:
    rngs = nnx.Rngs(0)

    def branch(cls: type[Branch] = Branch, width: int = 2, strides: int = 1) -> nnx.Module:
        return cls(BlockSpec(4, 4, 2, width, strides=strides), returns_to_width=True, rngs=rngs)

    others: dict[str, list[nnx.Module]] = {
        "a convolution": [LayerOptions().conv(4, 4, 3, rngs=rngs)],
        "another function": [branch(_TanhBranch)],
        "another width": [branch(width=3)],
        "another stride": [branch(strides=2)],
        "one too many": [branch(), branch()],
    }
    return [branch(), *others[kind]]


@pytest.mark.parametrize(
    "kind",
    ["a convolution", "another function", "another width", "another stride", "one too many"],
)
def test_a_block_over_unlike_branches_has_no_other_form(kind: str) -> None:
    block = BLOCKS["a"](BlockSpec(4, 4, 2, 2), rngs=nnx.Rngs(0))
    assert isinstance(block, BottleneckA)
    block.aggregation = Aggregation(unlike_branches(kind))
    with pytest.raises(TypeError, match="only a sum over branches of one topology") as caught:
        convert_form(block, "b")
    assert "\n" not in str(caught.value)


def test_preactivation_networks_have_one_form() -> None:
    model = create_model("resnext11_2x2d", preactivation=True, template_width=8, rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match="pre-activation networks exist in form c only"):
        convert_form(model, "a")


def test_unknown_forms_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown block form 'd'"):
        convert_form(small_network("c", "float32"), "d")  # type: ignore[arg-type]


@pytest.mark.usefixtures("float64")
def test_figure_4_is_trivially_wider() -> None:
    spec = BlockSpec(6, 8, 3, 4, options=options_of("float64"))
    block = randomise(TwoLayerA(spec, rngs=nnx.Rngs(0)))
    dense = widen_two_layers(block)
    x = images(6, "float64")
    y, dx, _, _ = evaluate(block, x)
    y_dense, dx_dense, _, _ = evaluate(dense, x)
    assert relative_difference(y_dense, y) < 1e-12
    assert relative_difference(dx_dense, dx) < 1e-12
    assert dense.wide.conv1.kernel.shape == (3, 3, 6, 12)
