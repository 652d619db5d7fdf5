"""What is filed is what was measured, and what is read back is what was filed."""

import json

import numpy as np
import pytest

from resonance_nb import bench, report, reporting, runs
from resonance_nb.queries import make_protocol, make_queries
from resonance_nb.core import ResonanceError
from resonance_nb.landmarks import FIRST, Landmarks
from resonance_nb.starter import make_starter


@pytest.fixture(scope='module')
def filed(tmp_path_factory):
    corpus = make_starter(n_pieces=12)
    plan = make_protocol(corpus, 'test')
    queries = make_queries(corpus, plan, [None, 0], [2, 5], n_noise_only=2)
    first = Landmarks(*FIRST)
    first.name = 'first'
    systems = [Landmarks(), first]
    costs = {r.name: bench.index(r, corpus, plan.catalogue_ids, progress=False) for r in systems}
    answers = bench.run(systems, queries, corpus, progress=False).assign(condition='hard mix')
    results = runs.Results('99_made', corpus=corpus)
    summary = report.file_answers(results, answers, {'landmark': 0.5, 'first': 0.9})
    report.file_leads(results, answers, 'landmark', ['first'])
    report.file_honesty(results, answers)
    report.file_costs(results, costs)
    root = tmp_path_factory.mktemp('project')
    path = root / 'data' / 'results' / '99_made.json'
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({'chapter': '99_made', 'run': {'run': '99_made/1'}, 'metrics': results.rows}))
    return root, answers, summary


def test_accuracies_come_back(filed, monkeypatch):
    root, answers, summary = filed
    monkeypatch.setattr(report, 'reported', lambda chapter: reporting.reported(chapter, root))
    read = report.reported_table('99_made', 'top1', system='landmark').sort_values(['duration_s', 'snr_db'])
    made = summary[summary.system == 'landmark'].sort_values(['duration_s', 'snr_db'])
    for name in ('top1', 'top1_low', 'top1_high', 'n'):
        np.testing.assert_allclose(read[name].astype(float), made[name].astype(float))
    with pytest.raises(ResonanceError, match="no 'top1' in 'club'"):
        report.reported_table('99_made', 'top1', 'club')


def test_acceptance_is_at_the_named_threshold(filed):
    root, answers, _ = filed
    mine = answers[
        (answers.system == 'first')
        & (answers.kind == 'known')
        & (answers.duration_s == 5)
        & (answers.snr_db == 0)
    ]
    right = ((mine['rank'] == 1) & (mine.confidence >= 0.9)).mean()
    found = reporting.reported_value(
        '99_made', 'accepted_correct', 'first', root, duration_s=5.0, snr_db=0.0, condition='hard mix'
    )
    assert found.value == pytest.approx(right) and found.n == len(mine)


def test_leads_are_of_the_leader_over_the_rival(filed):
    root, answers, summary = filed
    top1 = summary[(summary.duration_s == 2) & (summary.snr_db == 0)].set_index('system').top1
    found = reporting.reported_value('99_made', 'lead_over', 'first', root, duration_s=2.0, snr_db=0.0)
    assert found.value == pytest.approx(top1['landmark'] - top1['first'])


def test_a_chapter_that_was_not_reported_shows_its_own(filed):
    _, _, summary = filed
    assert len(report.reported_table('98_nothing', 'top1', otherwise=summary)) == len(summary)
    assert report.reported_text('98_nothing', 'top1') == 'not yet run'
