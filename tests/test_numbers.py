"""No measured number is typed: not in a study chapter, not in README."""

import json
import re

import pytest

from resonance_nb import reporting
from resonance_nb.core import ResonanceError

# A number with the unit of a result: 93 %, 4.2 ms, 12 dB, 310 x real time.
MEASURED = re.compile(
    r'(?<![\w.,^{(/-])[−-]?\d[\d.,]*\s?(?:%|dB\b|ms\b|s\b|x real|× real|bytes\b|hours?\b|minutes?\b)'
)
# What may stand there all the same: definitions, settings and quoted figures.
ALLOWED = re.compile(r'95 %|\b16 ?000 Hz|\b0 dB|1 % false')


def measurements(text):
    "The typed measurements of a markdown cell."
    text = re.sub(r'```.*?```|`[^`]*`|\$[^$]*\$', ' ', text, flags=re.S)
    found = []
    for sentence in re.split(r'(?<=[.!?])\s+|\n\s*\n|\n[|*-]', text):
        if '{cite' in sentence or re.search('defin|published', sentence.lower()):
            continue
        found += MEASURED.findall(ALLOWED.sub(' ', sentence))
    return found


def settings_of(nb):
    "The numbers that stand in the parameters cell: a chapter may name its own settings."
    cells = [c.source for c in nb.cells if 'parameters' in c.metadata.get('tags', [])]
    return set(re.findall(r'\d+(?:\.\d+)?', ' '.join(cells)))


@pytest.mark.parametrize(
    'text, count',
    [
        ('It finds 93.1 % of the songs.', 1),
        ('A query takes 4 ms.', 1),
        ('Indexing runs at 310 × real time.', 1),
        ('It finds {glue:text}`top1` of the songs.', 0),
        ('With a 95 % interval.', 0),
        ('Wang reports 85 % {cite:p}`wang2003industrial`.', 0),
        ('| landmark | 71 % |', 1),
    ],
)
def test_the_detector_itself(text, count):
    assert len(measurements(text)) == count


def test_studies_type_no_measurement(notebooks):
    studies = {
        n: nb
        for n, nb in notebooks.items()
        if any('parameters' in c.metadata.get('tags', []) for c in nb.cells)
    }
    assert studies
    typed = []
    for name, nb in {**studies, 'index': notebooks['index']}.items():
        own = settings_of(nb)
        for cell in nb.cells:
            if cell.cell_type == 'markdown':
                left = [m for m in measurements(cell.source) if re.search(r'\d+(?:\.\d+)?', m)[0] not in own]
                typed += [f'{name} {cell.id}: {m}' for m in left]
    assert not typed, f'glue these instead: {typed}'


def test_readme_says_what_the_results_say(root):
    text = (root / 'README.md').read_text(encoding='utf-8')
    assert reporting.fill_text(text, root) == text, (
        'run: python -c "from resonance_nb.reporting import fill_readme; fill_readme()"'
    )


def test_readme_types_no_measurement(root):
    text = (root / 'README.md').read_text(encoding='utf-8')
    bare = re.sub(r'<!-- result:.*?<!-- /result -->', ' ', text, flags=re.S)
    assert not re.findall(r'\d[\d.,]*\s?%', ALLOWED.sub(' ', bare))


def test_results_are_whole(root):
    for path in (root / 'data' / 'results').glob('*.json'):
        found = json.loads(path.read_text(encoding='utf-8'))
        assert found['chapter'] == path.stem and found['metrics']
        facts = found['run']
        for key in ('run', 'profile', 'seed', 'package_hash', 'data', 'duration_s', 'machine', 'revision'):
            assert facts.get(key) is not None, f'{path.name} lacks {key}'
        assert facts['profile'] != 'quick', f'{path.name} reports a quick run'
        for row in found['metrics']:
            assert {'metric', 'value', 'low', 'high', 'n', 'system', 'corpus', 'setting'} <= row.keys()
            if row['low'] is not None:
                assert row['low'] <= row['value'] <= row['high']


def test_fill_text_finds_a_changed_number(tmp_path):
    folder = tmp_path / 'data' / 'results'
    folder.mkdir(parents=True)
    row = dict(
        metric='top1',
        value=0.5,
        low=0.4,
        high=0.6,
        n=80,
        system='landmark',
        corpus='c',
        setting={'snr_db': 0},
    )
    (folder / '34_classical.json').write_text(
        json.dumps(dict(chapter='34_classical', run={'run': 'r'}, metrics=[row]))
    )
    mark = '<!-- result:34_classical top1 system=landmark snr_db=0 -->99 %<!-- /result -->'
    filled = reporting.fill_text(f'a {mark} b', tmp_path)
    assert '50.0 % (95 % interval 40.0 to 60.0 %, n = 80)' in filled and '99' not in filled
    assert reporting.fill_text(filled, tmp_path) == filled
    with pytest.raises(ResonanceError, match='reports 0 numbers'):
        reporting.fill_text(mark.replace('snr_db=0', 'snr_db=7'), tmp_path)


def test_the_figure_is_of_the_reported_run(root):
    run = json.loads((root / 'data' / 'results' / '70_results.json').read_text(encoding='utf-8'))['run'][
        'run'
    ]
    assert run in (root / 'figures' / 'accuracy.svg').read_text(encoding='utf-8'), (
        'draw it anew: figures/accuracy.ipynb'
    )
