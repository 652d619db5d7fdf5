"Corpus tables, path safety, splits and checks."

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resonance_nb.audio import save
from resonance_nb.corpora import (
    COLUMNS,
    KINDS,
    SPLITS,
    Corpus,
    CorpusError,
    check_table,
    manifest,
    read_table,
    safe_file,
    safe_id,
    split_keys,
    split_of,
    splits_table,
    table_text,
    write_corpus,
    write_splits,
)

ROOT = Path(__file__).parents[1]
PREPARED = Path(os.environ.get('RESONANCE_CORPUS') or ROOT / 'none is named')


def music(*rows):
    return pd.DataFrame([dict(id=i, file=f'music/{i}.wav', duration_s=d, **more) for i, d, more in rows])


@pytest.fixture
def small(tmp_path):
    (tmp_path / 'music').mkdir()
    for i, seconds in (('a', 1.0), ('b', 2.0)):
        save(tmp_path / f'music/{i}.wav', np.full(int(16_000 * seconds), 0.1, 'float32'))
    return write_corpus(tmp_path, music(('a', 1.0, {}), ('b', 2.0, {})))


def test_round_trip_keeps_text_as_text(tmp_path):
    names = ['None', '007', 'nan', 'a,b "c"', 'línea\nnueva', 'NA', '']
    table = music(*((f'x{n}', 64.0, dict(title=t, artist='é')) for n, t in enumerate(names)))
    again = write_corpus(tmp_path, table).music
    assert again['title'].tolist() == names and (again['duration_s'] == 64.0).all()
    assert list(again.columns) == COLUMNS['music'][1:]
    assert table_text(again) == table_text(check_table('music', table))


@pytest.mark.parametrize(
    'bad',
    [
        '',
        '/abs',
        '../up',
        'a/../../b',
        'a/./b',
        'a//b',
        'C:/x',
        'c:x',
        'a\\b',
        'a\0b',
        '~/x',
        'a\nb',
        'a/..',
        '..',
        None,
        3,
    ],
)
def test_unsafe_files_refused(bad):
    with pytest.raises(CorpusError):
        safe_file(bad)


@pytest.mark.parametrize('bad', ['', '.', '..', 'a/b', 'a\\b', 'c:d', 'a\0', 'x' * 201, None])
def test_unsafe_ids_refused(bad):
    with pytest.raises(CorpusError):
        safe_id(bad)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=40))
def test_accepted_names_stay_inside(name):
    try:
        safe_file(name)
    except CorpusError:
        return
    base = Path('/base/folder')
    assert Path(os.path.normpath(base / name)).is_relative_to(base) and '\0' not in name


@pytest.mark.parametrize(
    'text, says',
    [
        ('id,file\na,../x.ogg\n', 'could leave'),
        ('id,file\na,x.ogg\na,y.ogg\n', 'twice'),
        ('file\nx.ogg\n', "'id'"),
        ('id\na\n', "'file'"),
        ('id,file,duration_s\na,x.ogg,long\n', 'not a number'),
        ('', 'not a readable'),
        ('id,file\n../a,x.ogg\n', 'refused an id'),
        ('id,file\n"a,x\n', 'not a readable'),
    ],
)
def test_bad_tables_are_one_line(tmp_path, text, says):
    (tmp_path / 'music.csv').write_text(text)
    with pytest.raises(CorpusError, match=says) as e:
        Corpus(tmp_path).music
    assert '\n' not in str(e.value)


def test_binary_table_is_one_line(tmp_path):
    (tmp_path / 'music.csv').write_bytes(bytes(range(256)))
    with pytest.raises(CorpusError):
        Corpus(tmp_path).music


def test_no_corpus_and_unknown_names(tmp_path, small):
    with pytest.raises(CorpusError, match='not a corpus'):
        Corpus(tmp_path / 'nothing')
    for call in (
        lambda: small.table('video'),
        lambda: small.split('music', 'tset'),
        lambda: small.path('music', 'zz'),
    ):
        with pytest.raises(CorpusError):
            call()
    assert len(small.noise) == len(small.rir) == 0


def test_link_out_of_the_folder_refused(tmp_path):
    outside = tmp_path / 'outside.wav'
    save(outside, np.full(1600, 0.1, 'float32'))
    inside = tmp_path / 'c'
    (inside / 'music').mkdir(parents=True)
    (inside / 'music/a.wav').symlink_to(outside)
    corpus = write_corpus(inside, music(('a', 0.1, {})))
    with pytest.raises(CorpusError, match='leads out'):
        corpus.load('music', 'a')
    assert len(corpus.check()) == 1


def test_folder_reached_through_a_link_works(tmp_path, small):
    (tmp_path / 'alias').symlink_to(small.folder)
    assert len(Corpus(tmp_path / 'alias').load('music', 'a')) == 16_000


def test_load_and_check(small):
    assert len(small.load('music', 'b', 0.5, 1.0)) == 16_000 and small.check() == small.check(full=True) == []
    (small.folder / 'music/a.wav').write_bytes(b'broken')
    save(small.folder / 'music/b.wav', np.full(8000, 0.1, 'float32'))
    problems = small.check()
    assert len(problems) == 2 and 'unreadable' in problems[0] and 'lasts 0.50 s' in problems[1]
    (small.folder / 'music/b.wav').unlink()
    assert 'missing' in small.check(full=True)[1]


def test_checksum_is_of_facts(tmp_path, small):
    first = small.checksum()
    path = small.folder / 'music.csv'
    path.write_bytes(path.read_bytes().replace(b'\n', b'\r\n'))
    (small.folder / 'noise.csv').unlink()
    assert Corpus(small.folder).checksum() == first
    path.write_bytes(path.read_bytes().replace(b',1.0,', b',1.1,'))
    assert Corpus(small.folder).checksum() != first


def test_split_values_are_fixed():
    assert [split_of(f'song{i}') for i in range(8)] == EXPECTED
    assert [split_of('song0', seed=s) for s in range(6)] != [split_of('song0')] * 6
    assert split_of('x', fractions=(1, 0, 0)) == 'train' and split_of('x', fractions=(0, 0, 1)) == 'test'


EXPECTED = ['train', 'train', 'train', 'test', 'test', 'train', 'train', 'train']


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from('pqrst'), st.sampled_from(['', 'g', 'h']), st.sampled_from(['', 'u', 'v', 'w'])
        ),
        max_size=12,
    )
)
def test_groups_are_never_torn(rows):
    table = check_table(
        'music',
        music(
            *(
                (f'{n}{i}', 1.0, dict(version_group=g, source_url=f'https://x.example/{u}' if u else ''))
                for n, (i, g, u) in enumerate(rows)
            )
        )
        if rows
        else pd.DataFrame(columns=COLUMNS['music']),
    )
    keys = split_keys(table, 'music')
    for a in table.index:
        for b in table.index:
            same = any(
                table.at[a, c] and table.at[a, c] == table.at[b, c] for c in ('version_group', 'source_url')
            )
            assert not same or keys[a] == keys[b]
    shuffled = split_keys(table.iloc[::-1], 'music')
    assert all(shuffled[i] == keys[i] for i in table.index)


def test_one_file_at_two_revisions_is_one_source():
    url = 'https://raw.githubusercontent.com/o/r/{}/beach.ogg'
    table = check_table(
        'noise',
        music(
            ('a', 1.0, dict(source_url=url.format('1' * 40))),
            ('b', 1.0, dict(source_url=url.format('2' * 40))),
            ('c', 1.0, dict(source_url=url.format('2' * 40) + '#part')),
        ),
    )
    assert split_keys(table, 'noise').tolist() == ['a', 'a', 'c']


def test_manifest_and_committed_split():
    open_corpus = manifest()
    assert {k: len(open_corpus.table(k)) for k in KINDS} == {'music': 517, 'noise': 185, 'rir': 216}
    for kind in KINDS:
        table = open_corpus.table(kind)
        assert (table['source_sha256'].str.fullmatch('[0-9a-f]{64}')).all() and (table['licence'] != '').all()
        assert table['source_url'].str.startswith('https://').all()
    committed = pd.read_csv(ROOT / 'data/splits/open.csv', dtype=str, keep_default_na=False)
    pd.testing.assert_frame_equal(committed, splits_table(open_corpus), check_dtype=False)
    assert committed.groupby(['kind', 'key'])['split'].nunique().max() == 1
    assert committed.groupby(['kind', 'split']).size().min() >= 30
    assert committed.groupby('kind')['split'].nunique().eq(3).all()


def test_rooms_and_versions_stay_together():
    open_corpus = manifest()
    for kind, column in (('music', 'version_group'), ('rir', 'room_id')):
        where = {}
        for split in SPLITS:
            for group in set(open_corpus.split(kind, split)[column]) - {''}:
                where.setdefault(group, set()).add(split)
        assert where and all(len(s) == 1 for s in where.values())


def test_write_splits(tmp_path):
    write_splits(manifest(), tmp_path / 'open.csv')
    assert (tmp_path / 'open.csv').read_bytes() == (ROOT / 'data/splits/open.csv').read_bytes()


@pytest.mark.skipif(not (PREPARED / 'rir.csv').exists(), reason='no open corpus is named: RESONANCE_CORPUS')
def test_prepared_corpus_is_whole():
    corpus = Corpus(PREPARED)
    if len(corpus.rir) != 216:
        pytest.skip('another corpus is named')
    assert corpus.checksum() == manifest().checksum()
    assert corpus.check() == []
    row = corpus.rir.index[0]
    assert corpus.load('rir', row).dtype == np.float32


def test_default_corpus(monkeypatch, small, tmp_path):
    from resonance_nb.starter import default_corpus

    monkeypatch.setenv('RESONANCE_CORPUS', str(small.folder))
    assert len(default_corpus().music) == 2
    monkeypatch.setenv('RESONANCE_CORPUS', str(tmp_path / 'nowhere'))
    with pytest.raises(CorpusError, match='RESONANCE_CORPUS'):
        default_corpus()


def test_no_heavy_imports():
    code = (
        'import sys, resonance_nb.corpora, resonance_nb.download, resonance_nb.datasets, resonance_nb.sources;'
        'print([m for m in ("pandas", "requests", "numpy", "tqdm", "av", "music21") if m in sys.modules])'
    )
    assert (
        subprocess.run(
            [sys.executable, '-c', code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == '[]'
    )


def test_writing_is_atomic(small, monkeypatch):
    before = (small.folder / 'music.csv').read_bytes()
    monkeypatch.setattr(os, 'replace', lambda *a: (_ for _ in ()).throw(OSError('power cut')))
    with pytest.raises(OSError):
        write_corpus(small.folder, music(('c', 3.0, {})))
    assert (small.folder / 'music.csv').read_bytes() == before
    assert sorted(p.name for p in small.folder.iterdir()) == ['music', 'music.csv', 'noise.csv', 'rir.csv']


def test_read_table_missing(tmp_path):
    with pytest.raises(CorpusError, match='there is no'):
        read_table(tmp_path / 'x.csv', 'music')
