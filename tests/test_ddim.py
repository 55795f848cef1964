"""DDIM in both directions against closed forms."""

import numpy as np
import pytest
import torch
from tiny import tiny_scheduler

from freemask.errors import SettingError
from freemask.families.ddim import denoise, guide, invert, levels, multistep, step, timesteps

pytestmark = pytest.mark.numeric


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


def _error(steps: int, solver: str = "ddim") -> float:
    """Round-trip error for a Gaussian, whose best eps is known: x·√(1−ᾱ)/(ᾱσ² + 1 − ᾱ)."""
    scheduler = tiny_scheduler()
    alpha = levels(scheduler, timesteps(scheduler, steps))

    def predict(x, t, level):
        a = float(scheduler.alphas_cumprod[t])
        return x * (1 - a) ** 0.5 / (a * 4 + 1 - a)

    x = torch.randn(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    *_, (_, top) = invert(predict, x, alpha, solver=solver)
    *_, (_, back) = denoise(predict, top, alpha, solver=solver)
    return float((back - x).abs().mean())


def test_inversion_converges_at_first_order():
    assert _error(50) < _error(10) / 3


def test_the_solver_comes_back_nearer_in_few_steps():
    assert _error(10, "dpm") < _error(10) / 2
    assert _error(20, "dpm") < _error(50)


def _missed(steps: int, solver: str) -> tuple[float, float]:
    """How far inversion and denoising of a Gaussian end from where its flow leads, √(ᾱσ² + 1 − ᾱ) for the scale."""
    lam = torch.linspace(-2.5, 2.5, steps + 1, dtype=torch.float64)
    alpha = {steps - 1 - i: float(a) for i, a in enumerate(torch.sigmoid(2 * lam))}
    spread = {t: (4 * a + 1 - a) ** 0.5 for t, a in alpha.items()}

    def predict(x, t, level):
        return x * (1 - level) ** 0.5 / (4 * level + 1 - level)

    clean, top = (torch.tensor(spread[t], dtype=torch.float64) for t in (-1, steps - 1))
    *_, (_, up) = invert(predict, clean, alpha, solver=solver)
    *_, (_, down) = denoise(predict, top, alpha, solver=solver)
    return float((up - top).abs()), float((down - clean).abs())


@pytest.mark.parametrize(("solver", "ratio"), [("ddim", 2), ("dpm", 4)])
def test_orders_of_convergence_in_both_directions(solver, ratio):
    for coarse, fine in zip(_missed(80, solver), _missed(160, solver), strict=True):
        assert coarse / fine == pytest.approx(ratio, rel=0.15)


def test_the_first_order_case_is_ddim():
    """Without a prediction before, with the same one, and where λ says nothing of the way between the two."""
    x, eps, other = torch.randn(3, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for a_from, a_to in ((0.4, 0.9), (0.9, 0.4)):
        assert torch.equal(multistep(x, eps, a_from, a_to, before=None), step(x, eps, a_from, a_to))
        assert torch.allclose(multistep(x, eps, a_from, a_to, before=(eps, 0.6)), step(x, eps, a_from, a_to))
        assert not torch.allclose(multistep(x, eps, a_from, a_to, before=(other, 0.6)), step(x, eps, a_from, a_to))
    for a_before, a_from, a_to in ((0.4, 0.9, 1.0), (1.0, 0.9, 0.4), (0.9, 0.9, 0.4)):
        assert torch.equal(multistep(x, eps, a_from, a_to, before=(other, a_before)), step(x, eps, a_from, a_to))


def test_the_solver_is_the_papers_multistep_update():
    """x_t = α_t/α_s·x − σ_t·(e^h − 1)·(D0 + D1/2), D1 = (eps − eps')/r with r = h'/h: the second-order multistep
    DPM-Solver as diffusers computes it."""
    x, before, eps = torch.randn(3, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for a_before, a_from, a_to in ((0.1, 0.3, 0.7), (0.9, 0.6, 0.2)):
        last, here, there = (0.5 * np.log(a / (1 - a)) for a in (a_before, a_from, a_to))
        slope = (eps - before) / ((here - last) / (there - here))
        moved = (1 - a_to) ** 0.5 * (np.exp(there - here) - 1) * (eps + slope / 2)
        expected = (a_to / a_from) ** 0.5 * x - moved
        assert torch.allclose(multistep(x, eps, a_from, a_to, before=(before, a_before)), expected)


def test_the_last_two_steps_of_denoising_are_of_first_order():
    alpha = {-1: 0.999, 1: 0.9, 2: 0.6, 3: 0.3, 4: 0.1}
    x, *eps = torch.randn(5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    told = dict(zip((4, 3, 2, 1), eps, strict=True))
    reached = dict(denoise(lambda x, t, a: told[t], x, alpha, solver="dpm"))
    expected = step(x, told[4], 0.1, 0.3)
    assert torch.allclose(reached[4], expected)
    expected = multistep(expected, told[3], 0.3, 0.6, before=(told[4], 0.1))
    assert torch.allclose(reached[3], expected)
    expected = step(step(expected, told[2], 0.6, 0.9), told[1], 0.9, 0.999)
    assert torch.allclose(reached[1], expected)


def test_a_latent_is_seen_under_its_own_label_by_the_solver():
    alpha = levels(tiny_scheduler(), timesteps(tiny_scheduler(), 4))
    for solver, expected in (("ddim", [1, 251, 501, 751]), ("dpm", [0, 1, 251, 501])):
        seen = []
        list(invert(lambda x, t, a, seen=seen: seen.append(t) or 0 * x, torch.ones(1), alpha, solver=solver))
        assert seen == expected


def test_only_ddim_adds_noise():
    alpha = levels(tiny_scheduler(), (1, 501))
    with pytest.raises(SettingError, match="leave eta at 0"):
        next(denoise(lambda x, t, a: x, torch.ones(1), alpha, solver="dpm", eta=0.5))


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
    noise = torch.randn(4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ours = step(x, eps, alpha[ts[3]], alpha[ts[2]], eta=0.7, noise=noise)
    theirs = scheduler.step(eps, ts[3], x, eta=0.7, variance_noise=noise).prev_sample
    assert np.allclose(ours, theirs, atol=1e-6)


def test_fresh_noise_keeps_the_variance():
    """Eq. 16 of DDIM: σ² for η = 1 is (1 − ᾱ_to)/(1 − ᾱ_from)·(1 − ᾱ_from/ᾱ_to), and eps keeps the rest of 1 − ᾱ_to."""
    zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    fresh = step(zero, zero, 0.5, 0.8, eta=1.0, noise=one).item()
    assert fresh**2 == pytest.approx(0.2 / 0.5 * (1 - 0.5 / 0.8))
    held = step(0.5**0.5 * one, one, 0.5, 0.8, eta=1.0, noise=zero).item()  # a clean latent of 0
    assert held**2 + fresh**2 == pytest.approx(0.2)
    assert step(zero, zero, 0.8, 0.5, eta=1.0, noise=one).item() == 0  # none on the way up


def test_guidance_and_its_rescale():
    plain, told = torch.randn(2, 1, 4, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(guide(plain, told, 1.0), told)
    strong = guide(plain, told, 7.5)
    assert torch.allclose(strong, plain + 7.5 * (told - plain))
    calm = guide(plain, told, 7.5, 1.0)
    assert calm.std().item() == pytest.approx(told.std().item(), rel=1e-5)
    assert torch.allclose(calm / calm.std(), strong / strong.std(), atol=1e-5)
    assert torch.allclose(guide(plain, told, 7.5, 0.25), 0.75 * strong + 0.25 * calm, atol=1e-4)
    pair = guide(torch.cat([plain, 3 * plain]), torch.cat([told, told]), 7.5, 1.0)  # each by its own spread
    assert torch.allclose(pair[:1], calm, atol=1e-4)
    assert pair[1].std().item() == pytest.approx(told.std().item(), rel=1e-4)
