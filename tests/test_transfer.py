"""Closed-form transfer: the definitions, solved by scipy in the plainest way, and bad input."""

from __future__ import annotations

import importlib
import pickle
import sys
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import scipy.linalg
import torch
from sklearn import config_context
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler, normalize

import fastmmd as fm
from fastmmd import _extras
from fastmmd.transfer import (
    CORAL,
    FeatureAugmentation,
    FeatureMatcher,
    InstanceSelector,
    JointDistributionAdaptation,
    KernelMeanMatching,
    LinearMapping,
    SubspaceAlignment,
    TransferComponentAnalysis,
)

Array = npt.NDArray[Any]


def domains(n: int = 40, m: int = 30, d: int = 6, seed: int = 0) -> tuple[Array, Array, Array]:
    """Rows of two domains, mixed, with three classes."""
    rng = np.random.default_rng(seed)
    y = rng.integers(3, size=n + m)
    domain = rng.permutation(np.r_[np.zeros(n, int), np.full(m, -1)])
    x = rng.normal(size=(n + m, d)) + 3 * np.eye(3, d)[y] + 0.8 * (domain < 0)[:, None]
    return x, y, domain


def gram(kernel: str, x: Array) -> Array:
    """Kernel matrices written out."""
    if kernel == "linear":
        return x @ x.T
    d2 = ((x[:, None] - x[None]) ** 2).sum(-1)
    median = np.sort(d2[np.triu_indices(len(x), 1)])[(len(x) * (len(x) - 1) // 2 - 1) // 2]
    return np.exp(-d2 / median) if kernel == "rbf" else np.exp(-np.sqrt(2 * d2 / median))


def plain_embedding(z: Array, m: Array, reg: float, k: int) -> Array:
    """Z A by scipy's generalised eigenproblem, with columns up to their sign."""
    centre = np.eye(len(z)) - 1 / len(z)
    _, a = scipy.linalg.eigh(z.T @ centre @ z, z.T @ m @ z + reg * np.eye(z.shape[1]))
    a = a[:, ::-1][:, :k]
    return z @ (a / np.linalg.norm(a, axis=0))


def mean_matrix(domain: Array, groups: list[tuple[Array, float]]) -> Array:
    """M of groups of rows with their weights, of Frobenius norm 1."""
    total = np.zeros((len(domain), len(domain)))
    for rows, weight in groups:
        e = np.zeros(len(domain))
        for sign, half in ((1, rows & (domain >= 0)), (-1, rows & (domain < 0))):
            if half.any():
                e[half] = sign / half.sum()
        total += weight * np.outer(e, e)
    return total / np.linalg.norm(total)


def assert_same_columns(found: Array, expected: Array) -> None:
    signs = np.sign((found * expected).sum(0))
    np.testing.assert_allclose(found * signs, expected, rtol=1e-7, atol=1e-9 * abs(expected).max())


@pytest.mark.parametrize("kernel", ["primal", "linear", "rbf", "laplacian"])
@pytest.mark.parametrize("width", [6, 90])
def test_tca_is_the_generalised_eigenproblem(kernel: str, width: int) -> None:
    x, _, domain = domains(d=width)
    z = x if kernel == "primal" else gram(kernel, x)
    everything = np.ones(len(x), bool)
    expected = plain_embedding(z, mean_matrix(domain, [(everything, 1.0)]), 0.7, 4)
    tca = TransferComponentAnalysis(4, kernel, 0.7)
    found = tca.fit_transform(x, sample_domain=domain)
    assert_same_columns(found, expected)
    np.testing.assert_allclose(tca.transform(x[::3]), found[::3], atol=1e-12 * abs(found).max())
    assert (np.diff(tca.eigenvalues_) <= 0).all()


@pytest.mark.parametrize("kernel", ["primal", "linear", "rbf"])
def test_jda_is_a_sequence_of_them(kernel: str) -> None:
    x, y, domain = domains()
    z = x if kernel == "primal" else gram(kernel, x)
    source = domain >= 0
    everything = np.ones(len(x), bool)
    groups = [(everything, 3.0)]
    for _ in range(4):
        expected = plain_embedding(z, mean_matrix(domain, groups), 0.7, 3)
        unit = expected / np.linalg.norm(expected, axis=1, keepdims=True)
        closest = (unit[~source] @ unit[source].T).argmax(1)
        guess = y.copy()
        guess[~source] = y[source][closest]
        groups = [(everything, 3.0), *((guess == c, 1.0) for c in range(3))]
    masked = np.where(source, y.astype(float), np.nan)  # nobody looks at those of the target
    jda = JointDistributionAdaptation(3, kernel, 0.7, n_iter=4)
    found = jda.fit_transform(x, masked, sample_domain=domain)
    assert_same_columns(found, expected)
    np.testing.assert_array_equal(jda.pseudo_labels_, guess[~source])


def test_jda_takes_a_classifier() -> None:
    x, y, domain = domains()
    names = np.array(["ape", "bee", "cat"])[y]
    jda = JointDistributionAdaptation(3, reg=0.7, n_iter=3, classifier=LogisticRegression())
    z = normalize(jda.fit_transform(x, names, sample_domain=domain))
    model = LogisticRegression().fit(z[domain >= 0], names[domain >= 0])
    np.testing.assert_array_equal(jda.pseudo_labels_, model.predict(z[domain < 0]))

    class Foreign(LogisticRegression):
        def predict(self, X: Any) -> Any:
            return np.full(len(X), "dog")

    jda.set_params(classifier=Foreign())
    with pytest.raises(ValueError, match=r"classes of the source, \['ape'.*got \['dog'\]"):
        jda.fit(x, names, sample_domain=domain)


def test_coral_matches_covariances() -> None:
    x, _, domain = domains()
    out = CORAL(reg=0.0).fit_transform(x, sample_domain=domain)
    np.testing.assert_array_equal(out[domain < 0], x[domain < 0])
    np.testing.assert_allclose(np.cov(out[domain >= 0].T), np.cov(x[domain < 0].T), atol=1e-12)
    c_s, c_t = (np.cov(x[half].T) + np.eye(6) for half in (domain >= 0, domain < 0))
    a = scipy.linalg.inv(scipy.linalg.sqrtm(c_s)) @ scipy.linalg.sqrtm(c_t)
    coral = CORAL().fit(x, sample_domain=domain)
    np.testing.assert_allclose(coral.coef_, a, atol=1e-12)
    np.testing.assert_array_equal(coral.transform(x), x)  # target rows, if nobody says otherwise
    loss = fm.coral(*(torch.from_numpy(out[half]) for half in (domain >= 0, domain < 0)))
    assert float(loss) < 1e-20


def test_subspace_alignment() -> None:
    x, _, domain = domains()
    out = SubspaceAlignment(2).fit_transform(x, sample_domain=domain)
    pca = {half: PCA(2).fit(x[(domain >= 0) == half]) for half in (True, False)}
    p_s, p_t = (pca[half].components_.T for half in (True, False))
    expected = pca[True].transform(x[domain >= 0]) @ (p_s.T @ p_t)
    assert_same_columns(out[domain >= 0], expected)
    assert_same_columns(out[domain < 0], pca[False].transform(x[domain < 0]))


def test_linear_mapping() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 4)), rng.normal(size=(30, 3))
    found = LinearMapping().fit(x, y).transform(x)
    design = np.c_[x, np.ones(30)]
    np.testing.assert_allclose(found, design @ np.linalg.lstsq(design, y)[0], atol=1e-12)
    ridge = LinearMapping("ridge", reg=2.5).fit(x, y)
    np.testing.assert_allclose(ridge.transform(x), Ridge(2.5).fit(x, y).predict(x), atol=1e-12)
    wide = rng.normal(size=(30, 50))
    ridge.fit(wide, y)
    np.testing.assert_allclose(ridge.coef_, Ridge(2.5).fit(wide, y).coef_.T, atol=1e-12)
    target = rng.normal(size=(30, 4))
    turn = LinearMapping("procrustes", fit_intercept=False).fit(x, target)
    np.testing.assert_allclose(turn.coef_, scipy.linalg.orthogonal_procrustes(x, target)[0])
    turned = x @ turn.coef_ + 3
    back = LinearMapping("procrustes").fit(x, turned)
    np.testing.assert_allclose(back.transform(x), turned, atol=1e-12)


@pytest.mark.parametrize("metric", ["euclidean", "cosine", "kl"])
def test_feature_matcher(metric: str) -> None:
    x, y, domain = domains()
    x = np.abs(x) + 0.01
    a, b = x[domain >= 0], x[domain < 0]
    p, q = (z / z.sum(1, keepdims=True) for z in (a, b))
    costs = {
        "euclidean": np.linalg.norm(a[:, None] - b[None], axis=-1),
        "cosine": 1 - (a @ b.T) / np.outer(*(np.linalg.norm(z, axis=1) for z in (a, b))),
        "kl": (p[:, None] * np.log(p[:, None] / q[None])).sum(-1),
    }[metric]
    matcher = FeatureMatcher(metric=metric).fit(x, sample_domain=domain)
    rows = np.flatnonzero(domain < 0)
    np.testing.assert_array_equal(matcher.source_indices_, np.flatnonzero(domain >= 0))
    np.testing.assert_array_equal(matcher.target_indices_, rows[costs.argmin(1)])
    np.testing.assert_allclose(matcher.distances_, costs.min(1), atol=1e-12)
    matcher = FeatureMatcher("assignment", metric).fit(x, sample_domain=domain)
    best = scipy.optimize.linear_sum_assignment(costs)
    np.testing.assert_allclose(matcher.distances_.sum(), costs[best].sum())
    assert len(set(matcher.target_indices_)) == 30
    matcher = FeatureMatcher("assignment", metric, True).fit(x, y, sample_domain=domain)
    np.testing.assert_array_equal(y[matcher.source_indices_], y[matcher.target_indices_])
    source, target = matcher.pairs(x)
    np.testing.assert_array_equal(source, x[matcher.source_indices_])
    assert LinearMapping("ridge").fit(source, target).transform(a).shape == a.shape


def test_infinite_divergences() -> None:
    x = np.array([[1.0, 1, 0], [0, 1, 1], [1, 1, 1], [0, 0, 2]])
    domain = [0, 0, -1, -1]
    matcher = FeatureMatcher(metric="kl").fit(x, sample_domain=domain)
    np.testing.assert_array_equal(matcher.target_indices_, [2, 2])
    with pytest.raises(ValueError, match="finite distance"):
        FeatureMatcher("assignment", "kl").fit(x, sample_domain=domain)


def test_augmentation_names() -> None:
    x = np.array([[1.0, 2.0], [3.0, 4.0]])
    made = FeatureAugmentation().fit(x)
    names = ["shared_x0", "shared_x1", "source_x0", "source_x1", "target_x0", "target_x1"]
    assert made.get_feature_names_out().tolist() == names
    np.testing.assert_array_equal(made.transform(x), np.c_[x, 0 * x, x])


def estimators() -> list[Any]:
    return [
        TransferComponentAnalysis(2, "rbf"),
        TransferComponentAnalysis(2, 0.5 * fm.Gaussian("mean") + fm.Laplacian(2.0)),
        JointDistributionAdaptation(2, "primal", n_iter=2),
        CORAL(),
        SubspaceAlignment(2),
        FeatureAugmentation(),
    ]


@pytest.mark.parametrize("estimator", estimators(), ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_arrays_and_tensors(estimator: Any, dtype: Any) -> None:
    x, y, domain = domains()
    x = x.astype(dtype)
    expected = clone(estimator).fit_transform(x, y, sample_domain=domain)
    assert expected.dtype == dtype
    tensors = [torch.from_numpy(array) for array in (x, y, domain)]
    found = estimator.fit_transform(tensors[0], tensors[1], sample_domain=tensors[2])
    assert isinstance(found, torch.Tensor)
    np.testing.assert_array_equal(found.numpy(), expected)
    assert isinstance(estimator.transform(x), np.ndarray)  # whatever fit was given


@pytest.mark.parametrize("estimator", [KernelMeanMatching(), InstanceSelector(), FeatureMatcher()])
def test_attributes_are_of_the_kind_of_the_data(estimator: Any) -> None:
    x, _, domain = domains()
    arrays = clone(estimator).fit(x, sample_domain=domain)
    tensors = clone(estimator).fit(torch.from_numpy(x), sample_domain=torch.from_numpy(domain))
    for name in ("weights_", "sample_weight_", "selected_", "target_indices_", "distances_"):
        if hasattr(arrays, name):
            assert isinstance(getattr(arrays, name), np.ndarray)
            np.testing.assert_array_equal(getattr(tensors, name).numpy(), getattr(arrays, name))


def test_pipelines_pass_domains_on() -> None:
    x, y, domain = domains()
    scaled = StandardScaler().fit_transform(x)
    tca = TransferComponentAnalysis(2)
    expected = clone(tca).fit_transform(scaled, sample_domain=domain)
    pipeline = make_pipeline(StandardScaler(), tca)
    found = pipeline.fit_transform(x, y, transfercomponentanalysis__sample_domain=domain)
    np.testing.assert_array_equal(found, expected)
    assert pipeline.get_feature_names_out().tolist() == [
        "transfercomponentanalysis0",
        "transfercomponentanalysis1",
    ]
    with config_context(enable_metadata_routing=True):
        pipeline = make_pipeline(StandardScaler(), CORAL(), clone(tca), LogisticRegression())
        pipeline.fit(x, y, sample_domain=domain)
        aligned = CORAL().fit_transform(scaled, sample_domain=domain)
        expected = clone(tca).fit_transform(aligned, sample_domain=domain)
        model = LogisticRegression().fit(expected, y)
        np.testing.assert_array_equal(
            pipeline.predict(x, sample_domain=domain), model.predict(expected)
        )


X, Y, DOMAIN = domains()


@pytest.mark.parametrize(
    ("estimator", "arguments", "error", "message"),
    [
        (
            TransferComponentAnalysis(2),
            {"sample_domain": None},
            ValueError,
            "sample_domain must be",
        ),
        (TransferComponentAnalysis(2), {"sample_domain": 0 * DOMAIN}, ValueError, "0 target rows"),
        (CORAL(), {"sample_domain": 0 * DOMAIN - 1}, ValueError, "0 source and 70 target rows"),
        (SubspaceAlignment(2), {"sample_domain": DOMAIN[1:]}, ValueError, r"shape \[70\]"),
        (SubspaceAlignment(2), {"sample_domain": DOMAIN > 0}, TypeError, "integers"),
        (TransferComponentAnalysis(2, "gauss"), {}, ValueError, "kernel must be .*got 'gauss'"),
        (TransferComponentAnalysis(2, 3), {}, TypeError, "kernel must be .*got int"),
        (TransferComponentAnalysis(0), {}, ValueError, "n_components must be from 1 to 6"),
        (TransferComponentAnalysis(7), {}, ValueError, "n_components must be from 1 to 6.*got 7"),
        (TransferComponentAnalysis(71, "rbf"), {}, ValueError, "1 to 70, the number of rows"),
        (TransferComponentAnalysis(2.0), {}, TypeError, "n_components must be an integer"),
        (TransferComponentAnalysis(2, reg=0), {}, ValueError, "reg must be finite and positive"),
        (TransferComponentAnalysis(2), {"X": X * np.nan}, ValueError, "NaN"),
        (CORAL(), {"X": torch.full((70, 2), torch.inf)}, ValueError, "X must be finite"),
        (CORAL(), {"X": torch.ones(70)}, ValueError, "X must be of rank 2"),
        (CORAL(0.0), {"X": np.c_[X, X]}, ValueError, "reg must be positive where"),
        (CORAL(-1.0), {}, ValueError, "reg must be finite and not negative"),
        (SubspaceAlignment(7), {}, ValueError, "30 target rows and 6 features, got 7"),
        (JointDistributionAdaptation(2), {"y": None}, ValueError, "y must be given"),
        (JointDistributionAdaptation(2), {"y": Y[1:]}, ValueError, "y must be of length 70"),
        (JointDistributionAdaptation(2), {"y": Y * np.nan}, ValueError, "y must have a label"),
        (JointDistributionAdaptation(2, n_iter=0), {}, ValueError, "n_iter must be at least 1"),
        (FeatureMatcher("best"), {}, ValueError, "method must be 'nearest' or 'assignment'"),
        (FeatureMatcher(metric="l1"), {}, ValueError, "metric must be 'euclidean', 'cosine' or"),
        (FeatureMatcher(metric="kl"), {}, ValueError, "no negative entries"),
        (
            FeatureMatcher(within_classes=True),
            {"y": np.where(DOMAIN < 0, Y + 1, Y)},
            ValueError,
            r"same classes in both domains, got \[0, 3\]",
        ),
        (KernelMeanMatching("primal"), {}, ValueError, "kernel must be .*got 'primal'"),
        (KernelMeanMatching(fm.Energy()), {}, ValueError, "positive definite"),
        (KernelMeanMatching(upper=0.5, slack=0.1), {}, ValueError, "upper must be at least"),
        (KernelMeanMatching(tol=0), {}, ValueError, "tol must be finite and positive"),
        (KernelMeanMatching(max_iter=1.5), {}, TypeError, "max_iter must be an integer"),
        (InstanceSelector(keep=0), {}, ValueError, "keep must be from 1 to 40"),
        (InstanceSelector(keep=1.5), {}, ValueError, "share of at most 1"),
    ],
)
def test_bad_input(
    estimator: Any, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        estimator.fit(**{"X": X, "y": Y, "sample_domain": DOMAIN} | arguments)


def test_bad_pairs() -> None:
    with pytest.raises(ValueError, match=r"X and y must be pairs.*got 70 and 69"):
        LinearMapping().fit(X, X[1:])
    with pytest.raises(ValueError, match="y must be as wide as X"):
        LinearMapping("procrustes").fit(X, X[:, 1:])
    with pytest.raises(ValueError, match="y must be finite"):
        LinearMapping().fit(X, X * np.nan)
    with pytest.raises(ValueError, match="method must be"):
        LinearMapping("lasso").fit(X, X)
    tca = TransferComponentAnalysis(2).fit(torch.from_numpy(X), sample_domain=DOMAIN)
    with pytest.raises(ValueError, match="features"):
        tca.transform(X[:, 1:])
    with pytest.raises(ValueError, match="features"):
        tca.transform(torch.from_numpy(X[:, 1:]))


def test_missing_scikit_learn_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_extras, "find_spec", lambda name: None)
    monkeypatch.delitem(sys.modules, "fastmmd.transfer")
    message = r"fastmmd.transfer needs sklearn, scipy.*fastmmd\[transfer\]"
    with pytest.raises(_extras.MissingExtraError, match=message):
        importlib.import_module("fastmmd.transfer")


def test_models_are_pickled() -> None:
    x, y, domain = domains()
    for estimator in estimators():
        expected = estimator.fit_transform(x, y, sample_domain=domain)
        again = pickle.loads(pickle.dumps(estimator))
        assert again.transform(x).shape == expected.shape
        np.testing.assert_array_equal(again.transform(x), estimator.transform(x))
