"""DDIM in both directions against closed forms."""

import numpy as np
import pytest
import torch
from tiny import tiny_scheduler

from freemask.ddim import denoise, guide, invert, levels, step, timesteps


def test_timesteps_are_the_schedulers():
    assert timesteps(tiny_scheduler(), 50) == tuple(range(1, 982, 20))


def test_without_noise_the_latent_only_shrinks():
    scheduler = tiny_scheduler()
    alpha = levels(scheduler, timesteps(scheduler, 50))
    *_, (t, x) = invert(lambda x, t, a: torch.zeros_like(x), torch.ones(1), alpha)
    assert t == 981
    assert float(x) == pytest.approx(0.0760290306, rel=1e-6)


def test_there_and_back_is_the_identity():
    x, eps = torch.randn(2, 8, dtype=torch.float64)
    assert torch.allclose(step(step(x, eps, 0.9, 0.4), eps, 0.4, 0.9), x, atol=1e-12)


def _error(steps: int) -> float:
    """Round-trip error for a Gaussian, whose best eps is known: x·√(1−ᾱ)/(ᾱσ² + 1 − ᾱ)."""
    scheduler = tiny_scheduler()
    alpha = levels(scheduler, timesteps(scheduler, steps))

    def predict(x, t, level):
        a = float(scheduler.alphas_cumprod[t])
        return x * (1 - a) ** 0.5 / (a * 4 + 1 - a)

    x = torch.randn(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    *_, (_, top) = invert(predict, x, alpha)
    *_, (_, back) = denoise(predict, top, alpha)
    return float((back - x).abs().mean())


def test_inversion_converges_at_first_order():
    assert _error(50) < _error(10) / 3


def test_seed_acts_only_with_eta():
    scheduler = tiny_scheduler()
    alpha = levels(scheduler, timesteps(scheduler, 5))

    def end(eta, seed):
        *_, (_, x) = denoise(lambda x, t, a: 0.1 * x, torch.ones(3), alpha, eta=eta, seed=seed)
        return x

    assert torch.equal(end(0.0, 1), end(0.0, 2))
    assert torch.equal(end(1.0, 1), end(1.0, 1))
    assert not torch.equal(end(1.0, 1), end(1.0, 2))


def test_matches_the_librarys_scheduler():
    scheduler = tiny_scheduler()
    ts = timesteps(scheduler, 10)
    alpha = levels(scheduler, ts)
    x, eps = torch.randn(2, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ours = step(x, eps, alpha[ts[3]], alpha[ts[2]])
    theirs = scheduler.step(eps, ts[3], x).prev_sample
    assert np.allclose(ours, theirs, atol=1e-6)


def test_guidance_and_its_rescale():
    plain, told = torch.randn(2, 1, 4, 2, 3, 3)
    assert torch.allclose(guide(plain, told, 1.0), told)
    strong = guide(plain, told, 7.5)
    assert torch.allclose(strong, plain + 7.5 * (told - plain))
    calm = guide(plain, told, 7.5, 1.0)
    assert calm.std().item() == pytest.approx(told.std().item(), rel=1e-5)
    assert torch.allclose(calm / calm.std(), strong / strong.std(), atol=1e-5)
