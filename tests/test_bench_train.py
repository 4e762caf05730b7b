"""What `make bench-train` counts and concludes, by hand."""

from cellaug.networks import generator
from cellaug.training import R1, Adversarial, CrossEntropy, Recipe, Relativistic
from studies.variants import CriticGAN, UnitGradient

import pytest
from bench_train import (
    PENALTY_EVERY,
    multiply_adds,
    shares,
    step_multiply_adds,
    steps_of,
    table,
    verdicts,
)
from keras import Input, Model, layers


def tiny_pair() -> tuple[Model, Model]:
    """A generator of 2 numbers to 8×8 pixels and a discriminator of these."""
    latent, image = Input((2,)), Input((8, 8, 3))
    x = layers.Dense(4 * 4 * 5, name="project")(latent)
    x = layers.BatchNormalization()(layers.Reshape((4, 4, 5))(x))
    made = layers.Conv2DTranspose(3, 5, strides=2, padding="same", name="up")(x)
    x = layers.Conv2D(7, 3, strides=2, padding="same", name="down")(image)
    x = layers.Flatten()(layers.LeakyReLU()(x))
    return Model(latent, made), Model(image, layers.Dense(1, name="logit")(x))


def tiny_gan(**options) -> Adversarial:
    objective = options.pop("objective", CrossEntropy())
    return CriticGAN(*tiny_pair(), objective, latent_dim=2, seed=0, **options)


def test_layers_are_counted_by_the_places_where_their_kernels_stand():
    g, d = tiny_pair()
    # 4×4 places are widened to 8×8: the kernel stands on each place of the input.
    assert multiply_adds(g) == {"project": 2 * 80, "up": 4 * 4 * 5 * 5 * 5 * 3}
    # 8×8 places are narrowed to 4×4: the kernel stands on each place of the output.
    assert multiply_adds(d) == {"down": 4 * 4 * 3 * 3 * 3 * 7, "logit": 4 * 4 * 7}


def test_the_dcgan_of_the_benchmark_costs_the_same_in_each_middle_layer():
    # Twice the side, half the channels on both sides of a kernel.
    counts = multiply_adds(generator(64, 256, 100, 5))
    assert counts == {
        "project": 100 * 4 * 4 * 256,
        "up_8": 4 * 4 * 25 * 256 * 128,
        "up_16": 4 * 4 * 25 * 256 * 128,
        "up_32": 4 * 4 * 25 * 256 * 128,
        "up_64": 32 * 32 * 25 * 32 * 3,
    }


def test_a_step_is_counted_by_hand():
    g, d = 160 + 6000, 3024 + 112
    plain = {
        "generator forward": g,
        "discriminator forward": d + d,
        # Twice the weights of both layers, twice the input of the second alone.
        "discriminator back": 2 * (3024 + 112) + 2 * 112,
        "discriminator for the generator": d + d,
        "generator back": (160 + 6000) + 6000,
        "penalty": 0,
    }
    assert step_multiply_adds(tiny_gan()) == plain
    # To the images, once more through both layers, and the weights of both: on every fourth step.
    lazy = tiny_gan(penalty=R1(every=4))
    assert step_multiply_adds(lazy) == {**plain, "penalty": 3 * 3136 / 4}
    # The generator's turn shows the discriminator the real images of the pairs too.
    paired = tiny_gan(objective=Relativistic())
    assert step_multiply_adds(paired) == {**plain, "discriminator for the generator": 3 * d}


def test_the_conditional_recipe_can_be_counted():
    counted = step_multiply_adds(Recipe(generator_depth=8, discriminator_depth=4).build(16, 3))
    assert min(counted.values()) > 0


@pytest.mark.parametrize("options", [{"d_steps": 5}, {"penalty": UnitGradient()}])
def test_steps_that_the_count_does_not_describe_are_refused(options):
    with pytest.raises(ValueError, match="expected a GAN with one discriminator step"):
        step_multiply_adds(tiny_gan(**options))


def result(torch: bool = True) -> dict:
    """Half an operation in 10⁹ for an image of the DCGAN, a quarter for a conditional one."""
    rates = {
        "ours": [30.0, 90.0, 60.0],
        "ours-bfloat16": [27.0],
        "torch": [40.0],
        "torch-bfloat16": [20.0],
        "torch-compiled": [44.0],
        "conditional": [80.0],
        "products": [30.0],
        "torch-products": [50.0],
    }
    if not torch:
        rates = {name: values for name, values in rates.items() if not name.startswith("torch")}
    counted = {"multiply_adds": {"forward": 2e8, "back": 0.5e8}}
    facts = {name: {} for name in rates} | {"ours": counted, "ours-bfloat16": counted}
    facts["conditional"] = {"multiply_adds": {"forward": 1.25e8}}
    made = {"rates": rates, "facts": facts, "arms": {name: f"arm {name}" for name in rates}}
    return {**made, "verdicts": verdicts(made)}


def test_verdicts_compare_medians_and_the_faster_library_of_matrix_products():
    assert result()["verdicts"] == {
        "float32": {"ratio": 60 / 40, "target": 1.3, "met": True},
        "bfloat16": {"ratio": pytest.approx(27 / 20), "target": 1.3, "met": True},
        "share of matrix products": {"ratio": 80 * 0.25 / 50, "target": 0.5, "met": False},
    }
    rows = {line.split("  ")[0]: line.split()[2:] for line in table(result()).splitlines()}
    assert rows["arm ours"] == ["60.0", "1.50", "30.0", "0.60"]
    assert rows["arm torch"] == ["40.0", "20.0", "0.40"]
    assert rows["arm torch-compiled"] == ["44.0", "1.10", "22.0", "0.44"]
    assert rows["arm torch-products"] == ["50.0", "1.00"]


def test_without_pytorch_only_matrix_products_are_compared():
    alone = result(torch=False)
    assert alone["verdicts"] == {
        "share of matrix products": {"ratio": 80 * 0.25 / 30, "target": 0.5, "met": True}
    }
    assert "arm ours  " in table(alone) and "torch" not in table(alone)


def test_shares_of_a_step_by_hand():
    kinds = {"_MklNativeConv2D": 3.0, "Conv2DBackpropInput": 2.0, "StatelessRandomUniformV2": 1.0}
    assert shares({**kinds, "Mul": 4.0}) == {"convolutions": 0.5, "random numbers": 0.1}


def test_slow_arms_take_few_steps_and_compared_ones_as_many():
    quick = {"ours": 0.2, "torch": 0.3, "ours-jax": 4.0, "products": 0.1}
    assert steps_of(quick, 32) == {"ours": 32, "torch": 32, "ours-jax": 1, "products": 32}
    slow = {"ours-bfloat16": 0.4, "torch-bfloat16": 30.0, "ours": 0.2}
    assert steps_of(slow, 32) == {"ours-bfloat16": 1, "torch-bfloat16": 1, "ours": 32}
    # one of the penalty's steps in each round
    assert steps_of({"conditional": 0.3, "conditional-bfloat16": 9.0}, 32) == {
        "conditional": 8, "conditional-bfloat16": 8,
    }  # fmt: skip
    assert Recipe().penalty_every == PENALTY_EVERY == 8
