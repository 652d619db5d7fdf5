"Loaders of other collections, on fixtures in the official formats, and archives that mean harm."

import hashlib
import io
import json
import os
import tarfile
import threading
import urllib.parse
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from resonance_nb import archives
from resonance_nb.archives import ArchiveError, extract_tar, extract_zip
from resonance_nb.audio import encode, save
from resonance_nb.core import ResonanceError
from resonance_nb.corpora import Corpus, CorpusError
from resonance_nb.datasets import (
    FMA_SHA1,
    fetch_fma,
    fetch_mtg,
    fma_corpus,
    mtg_corpus,
    read_checksums,
    read_fma,
    read_mtg,
    read_mtg_licences,
    read_mtg_names,
)
from resonance_nb.download import DownloadError, WrongChecksum
from resonance_nb.sources import SOURCES, fetch_jamendo, folder_corpus, jamendo_tracks

TONE = (0.2 * np.sin(np.arange(30 * 16_000) / 7)).astype('float32')
FAST = dict(backoff_s=0.01, retries=2)


@pytest.fixture(scope='module')
def mp3():
    return encode(TONE, codec='mp3')


@pytest.fixture(autouse=True)
def no_client(monkeypatch):
    monkeypatch.delenv('JAMENDO_CLIENT_ID', raising=False)


@pytest.fixture
def web():
    "A server with `files` (path -> bytes) and an `api` function (query -> (status, headers, object))."

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            path, _, query = self.path.partition('?')
            if path == '/api':
                status, headers, answer = self.server.api(dict(urllib.parse.parse_qsl(query)))
                body = json.dumps(answer).encode()
            else:
                status, headers, body = (
                    (200, {}, self.server.files[path]) if path in self.server.files else (404, {}, b'')
                )
            self.send_response(status)
            for k, v in {'Content-Length': str(len(body)), **headers}.items():
                self.send_header(k, v)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    server.files = {}
    server.api = None
    server.url = f'http://127.0.0.1:{server.server_port}'
    threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.02}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


# archives


def make_zip(path, members, kind=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, 'w', kind) as z:
        for name, body in members.items():
            z.writestr(name, body)
    return path


def make_tar(path, members, mode='w'):
    with tarfile.open(path, mode) as tar:
        for name, body in members.items():
            member = tarfile.TarInfo(name)
            if isinstance(body, tuple):
                member.type, member.linkname = body
                tar.addfile(member)
            else:
                member.size = len(body)
                tar.addfile(member, io.BytesIO(body))
    return path


@pytest.mark.parametrize('name', ['../up.mp3', '/abs.mp3', 'a/../../up.mp3', 'C:/x.mp3', '..'])
@pytest.mark.parametrize('make, extract', [(make_zip, extract_zip), (make_tar, extract_tar)])
def test_traversal_refused(tmp_path, make, extract, name):
    out = tmp_path / 'deep/out'
    with pytest.raises(ResonanceError) as e:
        extract(make(tmp_path / 'a', {name: b'x'}), out)
    assert '\n' not in str(e.value) and [p.name for p in tmp_path.rglob('*') if p.is_file()] == ['a']


@pytest.mark.parametrize('kind', [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_refused(tmp_path, kind):
    out = tmp_path / 'out'
    with pytest.raises(ArchiveError):
        extract_tar(
            make_tar(tmp_path / 'a.tar', {'x.mp3': (kind, '../../etc/passwd' if kind < b'3' else '')}), out
        )
    assert list(out.iterdir()) == []


def test_zip_link_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / 'a.zip', 'w') as z:
        link = zipfile.ZipInfo('x.mp3')
        link.external_attr = 0o120777 << 16
        z.writestr(link, '/etc/passwd')
    with pytest.raises(ArchiveError, match='link'):
        extract_zip(tmp_path / 'a.zip', tmp_path / 'out')


def test_planted_link_on_disk_refused(tmp_path):
    out = tmp_path / 'out'
    out.mkdir()
    (out / 'd').symlink_to(tmp_path)
    for make, extract in ((make_zip, extract_zip), (make_tar, extract_tar)):
        with pytest.raises(ArchiveError):
            extract(make(tmp_path / 'a', {'d/evil.mp3': b'x'}), out)
    assert not (tmp_path / 'evil.mp3').exists()


def test_bombs_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, '_FLOOR', 1 << 20)
    zeros = {'zeros': bytes(4 << 20)}
    with pytest.raises(ArchiveError, match='bomb'):
        extract_zip(make_zip(tmp_path / 'a.zip', zeros, zipfile.ZIP_DEFLATED), tmp_path / 'out')
    with pytest.raises(ArchiveError, match='bomb'):
        extract_tar(make_tar(tmp_path / 'a.tar.gz', zeros, 'w:gz'), tmp_path / 'out')
    assert not any(p.is_file() for p in (tmp_path / 'out').rglob('*'))


@pytest.mark.parametrize('cut', [10, 200, 3000])
def test_broken_archives_are_one_line(tmp_path, cut):
    body = np.random.default_rng(0).integers(0, 256, 9000, dtype='uint8').tobytes()
    for make, extract in ((make_zip, extract_zip), (make_tar, extract_tar)):
        path = make(tmp_path / 'a', {'x/y.mp3': body})
        path.write_bytes(path.read_bytes()[:cut])
        with pytest.raises(ArchiveError) as e:
            extract(path, tmp_path / 'out')
        assert '\n' not in str(e.value) and not (tmp_path / 'out/x/y.mp3').exists()


def test_flipped_bit_in_zip(tmp_path):
    path = make_zip(tmp_path / 'a.zip', {'x.mp3': b'abcdef' * 100})
    body = bytearray(path.read_bytes())
    body[100] ^= 1
    path.write_bytes(body)
    with pytest.raises(ArchiveError):
        extract_zip(path, tmp_path / 'out')
    assert not (tmp_path / 'out/x.mp3').exists()


@pytest.mark.parametrize(
    'method', [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
)
def test_good_zip_resumes(tmp_path, method):
    path = make_zip(tmp_path / 'a.zip', {'d/x.mp3': b'x' * 100, 'd/y.mp3': b'y' * 50}, method)
    assert extract_zip(path, tmp_path / 'out') == ['d/x.mp3', 'd/y.mp3']
    (tmp_path / 'out/d/y.mp3').unlink()
    stamp = (tmp_path / 'out/d/x.mp3').stat().st_mtime_ns
    extract_zip(path, tmp_path / 'out', only=lambda n: True)
    assert (tmp_path / 'out/d/y.mp3').read_bytes() == b'y' * 50 and (
        tmp_path / 'out/d/x.mp3'
    ).stat().st_mtime_ns == stamp


# a folder


def test_folder(tmp_path, mp3):
    (tmp_path / 'sub').mkdir()
    (tmp_path / 'sub/one.mp3').write_bytes(mp3)
    save(tmp_path / 'two.flac', TONE[:16_000])
    (tmp_path / 'broken.mp3').write_bytes(b'xx')
    (tmp_path / 'note.txt').write_text('x')
    before = sorted(p for p in tmp_path.rglob('*'))
    corpus = folder_corpus(tmp_path)
    assert sorted(corpus.music['file']) == ['sub/one.mp3', 'two.flac'] and corpus.check() == []
    assert [os.path.basename(p) for p, _ in corpus.notes] == ['broken.mp3'] and sorted(
        tmp_path.rglob('*')
    ) == before
    first = corpus.music.index[corpus.music['file'] == 'two.flac'][0]
    (tmp_path / 'sub/one.mp3').unlink()
    assert folder_corpus(tmp_path).music.index.tolist() == [first]
    assert len(corpus.load('music', first)) == 16_000


def test_folder_hostile_names(tmp_path):
    for name in ('a\nb.wav', 'back\\slash.wav', 'fine.wav'):
        save(tmp_path / name, TONE[:1600])
    os.rename(tmp_path / 'fine.wav', os.path.join(os.fsencode(tmp_path), b'\xff.wav'))
    save(tmp_path / 'Fine: two.wav', TONE[:1600])
    corpus = folder_corpus(tmp_path)
    assert corpus.music['file'].tolist() == ['Fine: two.wav'] and len(corpus.notes) == 3


def test_folder_empty_and_missing(tmp_path):
    assert len(folder_corpus(tmp_path).music) == 0
    with pytest.raises(CorpusError, match='no folder'):
        folder_corpus(tmp_path / 'nowhere')


# FMA: the header of the published tracks.csv, all 52 columns

GROUPS = {
    'album': 'comments date_created date_released engineer favorites id information listens producer tags title tracks type',
    'artist': 'active_year_begin active_year_end associated_labels bio comments date_created favorites id latitude location '
    'longitude members name related_projects tags website wikipedia_page',
    'set': 'split subset',
    'track': 'bit_rate comments composer date_created date_recorded duration favorites genre_top genres genres_all information '
    'interest language_code license listens lyricist number publisher tags title',
}
FIELDS = [(g, f) for g, names in GROUPS.items() for f in names.split()]


def fma_csv(rows):
    out = io.StringIO()
    print(
        ',' + ','.join(g for g, _ in FIELDS),
        ',' + ','.join(f for _, f in FIELDS),
        'track_id' + ',' * len(FIELDS),
        sep='\n',
        file=out,
    )
    for tid, values in rows.items():
        print(tid, *(f'"{values.get(k, "")}"' for k in FIELDS), sep=',', file=out)
    return out.getvalue()


def fma_row(title, subset, split='training'):
    return {
        ('track', 'title'): title,
        ('artist', 'name'): 'AWOL',
        ('set', 'subset'): subset,
        ('set', 'split'): split,
        ('track', 'duration'): '168',
        ('track', 'genre_top'): 'Hip-Hop',
        ('track', 'license'): 'Attribution 3.0',
        ('artist', 'bio'): '<p>line one\nline two, with commas</p>',
        ('track', 'genres'): '[21]',
    }


TRACKS = {
    2: fma_row('Food', 'small'),
    5: fma_row('None', 'small', 'test'),
    10: fma_row('Freeway', 'medium'),
    155320: fma_row('Far', 'large'),
}


def test_fma_layout(tmp_path, mp3):
    assert len(FIELDS) == 52
    (tmp_path / 'fma_metadata').mkdir()
    (tmp_path / 'fma_metadata/tracks.csv').write_text(fma_csv(TRACKS))
    for name in ('fma_small/000/000002.mp3', 'fma_small/000/000005.mp3', 'fma_large/155/155320.mp3'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(mp3)
    small = fma_corpus(tmp_path)
    assert (
        small.music['title'].to_dict() == {'fma-000002': 'Food', 'fma-000005': 'None'} and small.check() == []
    )
    assert (
        small.music['official_split'].tolist() == ['training', 'test']
        and (small.music['duration_s'] == 30).all()
    )
    large = fma_corpus(tmp_path, 'large')
    assert large.music['file'].tolist() == ['fma_large/155/155320.mp3'] and len(large.notes) == 3
    assert {'small', 'medium', 'large'} == set(
        read_fma(tmp_path / 'fma_metadata/tracks.csv')[('set', 'subset')]
    )
    with pytest.raises(CorpusError, match='unknown FMA subset'):
        fma_corpus(tmp_path, 'tiny')


@pytest.mark.parametrize('text', ['', 'a,b\n1,2\n', 'x\n', ',track\n,title\ntrack_id,\n2,Food\n', '\0\1\2'])
def test_fma_bad_table(tmp_path, text):
    (tmp_path / 'tracks.csv').write_text(text)
    with pytest.raises(CorpusError, match='not FMA') as e:
        read_fma(tmp_path / 'tracks.csv')
    assert '\n' not in str(e.value)


def test_fma_fetch(tmp_path, web, mp3):
    meta = make_zip(
        tmp_path / 'm.zip', {'fma_metadata/tracks.csv': fma_csv(TRACKS), 'fma_metadata/README.txt': 'x'}
    )
    audio = make_zip(
        tmp_path / 's.zip',
        {'fma_small/000/000002.mp3': mp3, 'fma_small/000/000005.mp3': mp3, 'fma_small/checksums': 'x'},
    )
    web.files = {'/fma_metadata.zip': meta.read_bytes(), '/fma_small.zip': audio.read_bytes()}
    sha1 = {n: hashlib.sha1(web.files[f'/fma_{n}.zip']).hexdigest() for n in ('metadata', 'small')}
    kw = dict(progress=False, base_url=web.url + '/', **FAST)
    with pytest.raises(WrongChecksum):
        fetch_fma(tmp_path / 'fma', **kw)
    assert fetch_fma(tmp_path / 'fma', sha1=sha1, keep_archives=False, **kw).check() == []
    web.files = {}
    assert len(fetch_fma(tmp_path / 'fma', sha1=sha1, **kw).music) == 2
    assert len(Corpus(tmp_path / 'fma').music) == 2 and not (tmp_path / 'fma/fma_small.zip').exists()
    assert all(len(s) == 40 for s in FMA_SHA1.values())


# MTG-Jamendo: rows of the published tables

HEAD = 'TRACK_ID\tARTIST_ID\tALBUM_ID\tPATH\tDURATION\tTAGS\n'
ROWS = (
    'track_0000214\tartist_000014\talbum_000031\t14/214.mp3\t30.0\tgenre---punkrock\n',
    'track_0000382\tartist_000020\talbum_000046\t82/382.mp3\t211.1\tgenre---classical\tinstrument---voice\n',
    'track_1376256\tartist_490499\talbum_161779\t56/1376256.mp3\t166.0\tgenre---easylistening\tmood/theme---calm\n',
)
META = (
    'TRACK_ID\tARTIST_ID\tALBUM_ID\tTRACK_NAME\tARTIST_NAME\tALBUM_NAME\tRELEASEDATE\tURL\n'
    'track_0000214\tartist_000014\talbum_000031\tA "quote\tBand\tDemo\t2004-12-28\thttp://www.jamendo.com/track/214\n'
    'track_0000382\tartist_000020\talbum_000046\tLong name\t\tOther\tAlbum\t2005-01-01\thttp://www.jamendo.com/track/382\n'
)
LICENCES = (
    '14/214.mp3\n  Sourced from Jamendo: http://www.jamendo.com/track/214\n'
    '  Available under a Creative Commons Attribution license: http://creativecommons.org/licenses/by/3.0/\n\n'
    '82/382.mp3\n  Sourced from Jamendo: http://www.jamendo.com/track/382\n'
    '  Available under a Creative Commons license: http://creativecommons.org/licenses/by-nc-sa/2.0/\n'
)


def test_mtg_readers(tmp_path):
    (tmp_path / 'a.tsv').write_text(HEAD + ''.join(ROWS))
    rows = read_mtg(tmp_path / 'a.tsv')
    assert [len(r['TAGS']) for r in rows] == [1, 2, 2] and rows[1]['DURATION'] == 211.1
    (tmp_path / 'm.tsv').write_text(META)
    assert read_mtg_names(tmp_path / 'm.tsv') == {
        'track_0000214': ('A "quote', 'Band'),
        'track_0000382': ('Long name', 'Other'),
    }
    (tmp_path / 'l.txt').write_text(LICENCES)
    assert read_mtg_licences(tmp_path / 'l.txt')['82/382.mp3'] == (
        'http://creativecommons.org/licenses/by-nc-sa/2.0/',
        'http://www.jamendo.com/track/382',
    )


@pytest.mark.parametrize(
    'text',
    [
        '',
        'id,path\n',
        HEAD + 'track_1\tartist\n',
        HEAD + 'track_1\ta\tb\t01/1.mp3\tlong\tx\n',
        HEAD + 'track_1\ta\tb\t../1.mp3\t3.0\tx\n',
    ],
)
def test_mtg_bad_table(tmp_path, text):
    (tmp_path / 'a.tsv').write_text(text)
    with pytest.raises(CorpusError) as e:
        read_mtg(tmp_path / 'a.tsv')
    assert '\n' not in str(e.value)


def test_mtg_fetch(tmp_path, web, mp3):
    tar = make_tar(tmp_path / 'x.tar', {'14/214.low.mp3': mp3, '82/382.low.mp3': mp3}).read_bytes()
    meta, sums = '/meta/data/', '/meta/data/download/raw_30s_audio-low_sha256_'
    song = hashlib.sha256(mp3).hexdigest()
    part = 'raw_30s_audio-low-00.tar'
    web.files = {
        meta + 'raw_30s_cleantags_50artists.tsv': (HEAD + ''.join(ROWS)).encode(),
        meta + 'raw.meta.tsv': META.encode(),
        '/meta/audio_licenses.txt': LICENCES.encode(),
        f'/audio/audio-low/{part}': tar,
        **{
            f'{meta}splits/split-0/autotagging-{s}.tsv': (HEAD + r).encode()
            for s, r in zip(('train', 'validation', 'test'), ROWS)
        },
        sums
        + 'tars.txt': f'{hashlib.sha256(tar).hexdigest()} {part}\n{"0" * 64} raw_30s_audio-low-01.tar\n'.encode(),
        sums + 'tracks.txt': f'{song} 14/214.low.mp3\n{song} 82/382.low.mp3\n'.encode(),
    }
    kw = dict(progress=False, audio_url=web.url + '/audio/', meta_url=web.url + '/meta/', **FAST)
    corpus = fetch_mtg(tmp_path / 'mtg', **kw)
    assert corpus.music['file'].tolist() == ['audio/14/214.low.mp3', 'audio/82/382.low.mp3']
    assert corpus.music['official_split'].tolist() == ['train', 'validation'] and len(corpus.notes) == 1
    assert corpus.music['licence'].str.startswith('http://creativecommons.org/').all()
    assert not (tmp_path / f'mtg/{part}').exists() and len(Corpus(tmp_path / 'mtg').music) == 2
    web.files.pop(f'/audio/audio-low/{part}')
    assert len(fetch_mtg(tmp_path / 'mtg', **kw).music) == 2  # nothing to fetch again
    split = mtg_corpus(tmp_path / 'mtg', tmp_path / 'mtg/data/splits/split-0/autotagging-train.tsv')
    assert split.music.index.tolist() == ['track_0000214']


def test_mtg_wrong_track_refused(tmp_path, web, mp3):
    test_mtg_fetch(tmp_path, web, mp3)
    tar = make_tar(tmp_path / 'y.tar', {'14/214.low.mp3': b'another song'}).read_bytes()
    web.files['/audio/audio-low/raw_30s_audio-low-00.tar'] = tar
    name = '/meta/data/download/raw_30s_audio-low_sha256_tars.txt'
    web.files[name] = f'{hashlib.sha256(tar).hexdigest()} raw_30s_audio-low-00.tar\n'.encode()
    with pytest.raises(ArchiveError, match='not the track'):
        fetch_mtg(
            tmp_path / 'other',
            progress=False,
            audio_url=web.url + '/audio/',
            meta_url=web.url + '/meta/',
            **FAST,
        )
    assert not (tmp_path / 'other/audio/14/214.low.mp3').exists()


@pytest.mark.parametrize('text', ['', 'abc song.tar\n', '0' * 64 + '\n', '0' * 64 + ' ../up.tar\n'])
def test_checksum_lists(tmp_path, text):
    (tmp_path / 'sums').write_text(text)
    with pytest.raises(CorpusError):
        read_checksums(tmp_path / 'sums')


# the Jamendo API


def jamendo(n, page_s=None, refuse=()):
    "An API with n tracks, every third of which may not be downloaded."

    def api(q):
        api.asked.append(q)
        if api.first:
            return api.first.pop(0)
        if q.get('client_id') != 'my-id':
            return (
                200,
                {},
                {
                    'headers': {
                        'status': 'failed',
                        'code': 5,
                        'error_message': f'Invalid {q.get("client_id")}',
                    },
                    'results': [],
                },
            )
        start = int(q['offset'])
        limit = int(q['limit'])
        results = [
            {
                'id': str(i),
                'name': f'Song {i}',
                'duration': 30,
                'artist_name': 'Someone',
                'license_ccurl': 'http://creativecommons.org/licenses/by/3.0/',
                'audiodownload_allowed': i % 3 != 0,
                'audiodownload': f'{api.url}/dl/{i}?from=app-my-id' if i % 3 else '',
                'musicinfo': {'vocalinstrumental': 'instrumental', 'tags': {'genres': ['rock', 'pop']}},
            }
            for i in range(n)[start : start + limit]
        ]
        return (
            200,
            {},
            {
                'headers': {
                    'status': 'success',
                    'code': 0,
                    'error_message': '',
                    'results_count': len(results),
                },
                'results': results,
            },
        )

    api.asked = []
    api.first = []
    api.url = ''
    return api


def test_jamendo_pages(web, monkeypatch):
    web.api = jamendo(450)
    monkeypatch.setenv('JAMENDO_CLIENT_ID', 'my-id')
    web.api.url = web.url
    tracks = jamendo_tracks(250, 'rock  live', url=web.url + '/api')
    assert len({t['id'] for t in tracks}) == 250 and all(int(t['id']) % 3 for t in tracks)
    assert web.api.asked[-1]['tags'] == 'rock live' and [q['offset'] for q in web.api.asked[-2:]] == [
        '0',
        '200',
    ]
    assert len(jamendo_tracks(1000, url=web.url + '/api')) == 300  # all there are


def test_jamendo_errors(web):
    with pytest.raises(DownloadError, match='JAMENDO_CLIENT_ID') as e:
        jamendo_tracks()
    assert '\n' not in str(e.value)
    web.api = jamendo(3)
    with pytest.raises(DownloadError, match='code 5') as e:
        jamendo_tracks(client_id='secret-id', url=web.url + '/api')
    assert 'secret-id' not in str(e.value) and len(web.api.asked) == 1
    limited = 200, {}, {'headers': {'status': 'failed', 'code': 6, 'error_message': 'rate'}, 'results': []}
    web.api.first = [limited, (429, {'Retry-After': '0'}, {}), (500, {}, {}), (200, {}, ['odd'])]
    assert len(jamendo_tracks(2, client_id='my-id', url=web.url + '/api', backoff_s=0.01)) == 2
    web.api.first = [limited] * 9
    with pytest.raises(DownloadError, match='rate limit'):
        jamendo_tracks(2, client_id='my-id', url=web.url + '/api', **FAST)
    web.api.first = [(403, {}, {})]
    with pytest.raises(DownloadError, match='HTTP 403'):
        jamendo_tracks(2, client_id='my-id', url=web.url + '/api', **FAST)


def test_jamendo_fetch(tmp_path, web, mp3):
    web.api = jamendo(6)
    web.api.url = web.url
    web.files = {f'/dl/{i}': mp3 for i in (1, 2, 4)}
    corpus = fetch_jamendo(tmp_path, 4, progress=False, url=web.url + '/api', client_id='my-id', **FAST)
    assert sorted(corpus.music.index) == ['jamendo-1', 'jamendo-2', 'jamendo-4'] and corpus.check() == []
    assert [n for n, _ in corpus.notes] == ['music/jamendo-5.mp3']
    row = corpus.music.loc['jamendo-1']
    assert (
        row['source_sha256'] == hashlib.sha256(mp3).hexdigest()
        and row['vocals'] == 'no'
        and row['genre'] == 'rock pop'
    )
    assert not any('my-id' in p.read_text() for p in tmp_path.glob('*.csv')) and 'my-id' not in str(
        corpus.notes
    )


def test_sources_table():
    assert list(SOURCES) == [
        'starter',
        'open',
        'fma-small',
        'fma-medium',
        'fma-large',
        'fma-full',
        'mtg-jamendo',
        'jamendo',
    ]
    assert all(what and '\n' not in what and callable(f) for what, f in SOURCES.values())


def test_source_without_client_id(tmp_path):
    with pytest.raises(DownloadError, match='JAMENDO_CLIENT_ID'):
        SOURCES['jamendo'][1](tmp_path / 'j', progress=False)
