"""What holds for every prediction log: invariance, additivity, causality."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import expit
from sklearn.metrics import roc_auc_score

from learners.metrics import AucHistogram, GroupedSums, LossSums, Undefined, auc_exact, gauc
from learners.score_runs import aucs, score_runs
from learners.slates import slate_scores
from stream.evaluation.grouping import order_by_code, pair_groups, windows
from stream.evaluation.rows import coded
from stream.evaluation.slices import causal_slices
from tests.support.examples import examples
from tests.support.prediction_rows import rows_of

EXAMPLES = examples(50)
SCORES = st.floats(-20, 20, width=32).map(lambda x: round(x * 4) / 4)


@st.composite
def logs(draw, *, n_max=60, groups_max=6):
    """Scores with ties, labels, groups."""
    n = draw(st.integers(1, n_max))
    scores = draw(hnp.arrays(np.float32, n, elements=SCORES))
    labels = draw(hnp.arrays(np.int8, n, elements=st.integers(0, 1)))
    groups = draw(hnp.arrays(np.int32, n, elements=st.integers(0, groups_max)))
    return scores, labels, groups


@EXAMPLES
@given(logs())
def test_auc_equals_scikit_learn(log):
    s, y, _ = log
    if y.min() == y.max():
        assert auc_exact(s, y) == Undefined("only one class")
    else:
        assert auc_exact(s, y) == pytest.approx(roc_auc_score(y, s), abs=1e-12)
        assert auc_exact(-s, y) == pytest.approx(1 - auc_exact(s, y), abs=1e-12)


@EXAMPLES
@given(logs())
def test_rank_scores_know_the_order_alone(log):
    s, y, g = log
    for changed in (np.tanh(s.astype(np.float64) / 20), s * np.float32(4), np.exp(s / 10)):
        if len(np.unique(changed)) < len(np.unique(s)):
            continue
        assert auc_exact(changed, y) == auc_exact(s, y)
        assert gauc(changed, y, g) == gauc(s, y, g)
        assert slate_scores(changed, y, g) == slate_scores(s, y, g)


@EXAMPLES
@given(logs(), st.integers(0, 2**32 - 1))
def test_rank_scores_do_not_depend_on_the_order_of_rows(log, seed):
    s, y, g = log
    order = np.random.default_rng(seed).permutation(len(s))
    assert auc_exact(s[order], y[order]) == auc_exact(s, y)
    assert gauc(s[order], y[order], g[order]) == gauc(s, y, g)
    assert slate_scores(s[order], y[order], g[order]) == slate_scores(s, y, g)


@EXAMPLES
@given(logs())
def test_gauc_ignores_what_a_group_shares(log):
    s, y, g = log
    shifted = (s + g.astype(np.float32) * 8).astype(np.float32)
    assert gauc(shifted, y, g) == gauc(s, y, g)
    one = gauc(s, y, np.zeros(len(s), np.int32)).score
    if isinstance(one, Undefined):
        assert y.min() == y.max()
    else:
        assert one == pytest.approx(auc_exact(s, y), abs=1e-12)


@EXAMPLES
@given(logs())
def test_gauc_is_the_mean_of_its_groups(log):
    s, y, g = log
    found = gauc(s, y, g)
    of = aucs(score_runs(s, y, g))
    assert found.groups_used + found.groups_skipped == len(np.unique(g))
    assert found.impressions_used == of.n_G[of.defined_G].sum()
    if of.defined_G.any():
        expected = np.average(of.auc_G[of.defined_G], weights=of.n_G[of.defined_G])
        assert found.score == pytest.approx(expected, abs=1e-12)


@EXAMPLES
@given(logs(), st.data())
def test_states_of_parts_add_up(log, data):
    s, y, g = log
    cut = data.draw(st.integers(0, len(s)))
    parts = [slice(0, cut), slice(cut, None)]
    a, b = (AucHistogram.of(s[p], y[p]) for p in parts)
    whole = AucHistogram.of(s, y)
    np.testing.assert_array_equal((a + b).positives, whole.positives)
    np.testing.assert_array_equal((a + b).negatives, whole.negatives)
    merged = LossSums.of(s[parts[0]], y[parts[0]]) + LossSums.of(s[parts[1]], y[parts[1]])
    of_whole = LossSums.of(s, y)
    assert (merged.n, merged.label) == (of_whole.n, of_whole.label)
    assert merged.loss == pytest.approx(of_whole.loss, rel=1e-12, abs=1e-12)
    p = expit(s.astype(np.float64))
    loss = np.logaddexp(0, s.astype(np.float64))
    grouped = [GroupedSums.of(loss[q], y[q], p[q], g[q], 7) for q in (*parts, slice(None))]
    np.testing.assert_array_equal((grouped[0] + grouped[1]).n_G, grouped[2].n_G)
    np.testing.assert_allclose((grouped[0] + grouped[1]).loss_G, grouped[2].loss_G, rtol=1e-12)


@EXAMPLES
@given(logs())
def test_slate_scores_lie_between_nothing_and_all(log):
    s, y, g = log
    found = slate_scores(s, y, g)
    assert found.used + found.skipped == len(np.unique(g))
    if not isinstance(found.ndcg, Undefined):
        assert 0 <= found.ndcg <= 1 + 1e-12
        assert 0 <= found.hit1 <= found.mrr + 1e-12 <= 1 + 2e-12
        best = slate_scores(y.astype(np.float32), y, g)
        assert (best.ndcg, best.mrr, best.hit1) == pytest.approx((1, 1, 1))


@EXAMPLES
@given(
    hnp.arrays(np.int32, st.integers(0, 50), elements=st.integers(0, 9)),
    st.integers(0, 2**20),
    st.integers(0, 2**32 - 1),
)
def test_pairs_of_codes_are_told_apart(a, large, seed):
    """`large` makes the product of the codes too big for one number per possible pair."""
    b = np.random.default_rng(seed).integers(0, 4, len(a)) * large
    code, bound = pair_groups(a, b)
    assert len(code) == len(a)
    assert not len(code) or (code.min() >= 0 and code.max() < bound)
    same = code[:, None] == code[None]
    np.testing.assert_array_equal(same, (a[:, None] == a[None]) & (b[:, None] == b[None]))
    np.testing.assert_array_equal(order_by_code(a), np.argsort(a, kind="stable"))


@EXAMPLES
@given(
    hnp.arrays(np.int64, st.integers(0, 40), elements=st.integers(-(10**6), 10**6)),
    st.integers(1, 10**5),
    st.integers(-1_000, 1_000),
)
def test_windows_hold_their_rows(ts_ms, width_ms, offset_ms):
    found = windows(ts_ms, width_ms, offset_ms)
    start = found.start_ms_G[found.code_n]
    assert ((start <= ts_ms) & (ts_ms < start + width_ms)).all()
    assert ((found.start_ms_G + offset_ms) % width_ms == 0).all()
    assert len(found) == len(np.unique(start))


@EXAMPLES
@given(st.data())
def test_slice_keys_depend_on_the_past_alone(data):
    """Rows from later on may change in every way: the keys of the earlier rows stay."""
    n = data.draw(st.integers(1, 40))

    def column(low, high):
        return data.draw(hnp.arrays(np.int64, n, elements=st.integers(low, high)))

    def keys(item, user, ts_ms, label, rows):
        log = {
            "request_id": np.arange(n)[rows],
            "item_id": item[rows],
            "user_id": user[rows],
            "ts_ms": ts_ms[rows],
            "label": label[rows].astype(np.int8),
            "logit": np.zeros(rows.sum(), np.float32),
        }
        slicings, index = causal_slices(rows_of(log), settle_ms=settle_ms)
        return [s.code_n for s in slicings] + [index]

    item, user, label, ts_ms = column(0, 3), column(0, 3), column(0, 1), column(0, 12) * 1_200_000
    settle_ms = data.draw(st.sampled_from((0, 1_200_000, 3_000_000)))
    until = data.draw(st.integers(0, 12)) * 1_200_000
    whole = keys(item, user, ts_ms, label, np.ones(n, np.bool_))
    past = ts_ms <= until
    later = np.where(past, label, 1 - label), np.where(past, item, column(0, 3))
    cut = keys(item, user, ts_ms, label, past)
    changed = keys(later[1], user, ts_ms, later[0], np.ones(n, np.bool_))
    for before, short, other in zip(whole, cut, changed, strict=True):
        np.testing.assert_array_equal(before[past], short)
        np.testing.assert_array_equal(before[past], other[past])


@EXAMPLES
@given(hnp.arrays(np.int64, st.integers(0, 60), elements=st.integers(-5, 5)))
def test_codes_are_a_bijection(ids):
    column = coded(ids)
    np.testing.assert_array_equal(np.asarray(column.values)[column.code_n], ids)
    assert column.count == len(np.unique(ids))
