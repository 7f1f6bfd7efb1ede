"""Trees of arrays come back from the vectors they were joined to."""

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from resnext_jax.runs.packing import PART_BYTES, differences, index_of, pack, place, unpack
from resnext_jax.training.guard import GuardState


def make_tree() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    params = {
        "stem.kernel": rng.random((3, 3, 2, 4), dtype=np.float32),
        "norm.scale": rng.random(4, dtype=np.float32),
        "half": rng.random((2, 2)).astype(jnp.bfloat16),
        "nothing": np.zeros((0, 3), np.float32),
        "step": np.array(7, np.int32),
    }
    state = optax.chain(optax.clip(1.0), optax.sgd(0.1, momentum=0.9)).init(params)
    return jax.tree.map(
        np.asarray, {"params": params, "opt_state": state, "guard": GuardState.create()}
    )


def shapes(tree: Any, sharding: jax.sharding.Sharding) -> Any:
    return jax.tree.map(
        lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding), tree
    )


def test_every_array_comes_back_with_its_place_in_the_tree() -> None:
    tree = make_tree()
    vectors, index = pack(tree), index_of(tree)
    assert {name: (v.ndim, v.dtype.name) for name, v in vectors.items()} == {
        name: (1, name) for name in ("float32", "bfloat16", "int32", "bool")
    }
    arrays = unpack(vectors, json.loads(json.dumps(index)))
    assert "params.stem.kernel" in arrays
    assert "guard.halted" in arrays
    mesh = Mesh(jax.devices(), "data")
    like = shapes(tree, NamedSharding(mesh, PartitionSpec()))
    placed = place(arrays, like)
    assert str(jax.tree.structure(placed)) == str(jax.tree.structure(tree))
    for new, old in zip(jax.tree.leaves(placed), jax.tree.leaves(tree), strict=True):
        assert new.dtype == old.dtype
        assert len(new.sharding.device_set) == 8
        np.testing.assert_array_equal(new, old)


def test_arrays_may_be_split_over_devices() -> None:
    tree = {"w": np.arange(64, dtype=np.float32).reshape(16, 4)}
    sharding = NamedSharding(Mesh(jax.devices(), "data"), PartitionSpec("data"))
    placed = place(unpack(pack(tree), index_of(tree)), shapes(tree, sharding))
    assert placed["w"].sharding == sharding
    assert placed["w"].addressable_shards[3].data.shape == (2, 4)
    np.testing.assert_array_equal(placed["w"], tree["w"])


def test_the_order_of_the_wanted_tree_does_not_matter() -> None:
    @dataclasses.dataclass
    class Pair:
        b: Any
        a: Any

    jax.tree_util.register_dataclass(Pair, ["b", "a"], [])
    tree = {"a": np.zeros(3), "b": np.ones(2)}
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    placed = place(unpack(pack(tree), index_of(tree)), shapes(Pair(tree["b"], tree["a"]), one))
    assert placed.a.tolist() == [0, 0, 0]
    assert placed.b.tolist() == [1, 1]


def test_vectors_of_another_length_are_refused() -> None:
    tree = {"w": np.zeros(5)}
    with pytest.raises(ValueError, match="as long"):
        unpack({"float64": np.zeros(6)}, index_of(tree))
    with pytest.raises(ValueError, match="reshape"):
        unpack({"float64": np.zeros(4)}, index_of(tree))


def test_two_arrays_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="same name"):
        index_of({"a": {"b": np.zeros(1)}, "a.b": np.zeros(1)})


def test_differences_are_told_with_an_example_each() -> None:
    stored = index_of({"a": np.zeros(2), "b": np.zeros(2), "c": np.zeros(2), "d": np.zeros(2)})
    wanted = index_of({"b": np.zeros(3), "c": np.zeros(2, int), "d": np.zeros(2), "e": np.zeros(1)})
    assert differences(stored, stored) == []
    assert differences(stored, wanted) == [
        "1 arrays missing (such as e)",
        "1 arrays unexpected (such as a)",
        "1 arrays of another shape (such as b)",
        "1 arrays of another dtype (such as c)",
    ]


def test_a_long_vector_is_filled_up_to_whole_parts() -> None:
    """A prime length has no equal parts but single elements."""
    part = PART_BYTES // 4
    tree = {"a": np.arange(part, dtype=np.float32), "b": np.ones((15, 1), np.float32)}
    assert part + 15 == 4_194_319  # prime
    (vector,) = pack(tree).values()
    assert vector.shape == (2 * part,)
    for stored in (vector, vector[: part + 15]):  # also as it was stored before
        arrays = unpack({"float32": stored}, index_of(tree))
        assert np.array_equal(arrays["a"], tree["a"])
        assert np.array_equal(arrays["b"], tree["b"])
    with pytest.raises(ValueError, match="not as long"):
        unpack({"float32": vector[:-1]}, index_of(tree))
    (short,) = pack({"a": np.ones(part, np.float32)}).values()
    assert short.shape == (part,)
