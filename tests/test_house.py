"""The house rules that can be enforced (see CONTRIBUTING.md)."""

import ast
import importlib
import inspect
import itertools
import re
import tokenize
from configparser import ConfigParser
from io import StringIO
from pathlib import Path

import pytest

from resonance_nb.book import directives

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted(p.stem for p in (ROOT / 'nbs').glob('*.ipynb'))
MODULES = sorted(p.stem for p in (ROOT / 'resonance_nb').glob('*.py') if not p.stem.startswith('_'))
STUDIES = (
    '34_classical',
    '34a_grid',
    '34b_scale',
    '34c_choices',
    '24_simulator',
    '45_learned',
    '45a_published',
    '46_ablations',
    '46a_choices',
    '46b_encoders',
    '53_retrieval',
    '60_enhance',
    '63_live',
    '64e_serve_study',
    '70_results',
    '85a_metric_learning',
    '85c_feel_people_study',
    '88_feel_study',
    '88a_feel_invariance',
    '88b_feel_cost',
    '88c_feel_hear',
    '88d_feel_ablations',
    '89e_survey_raters',
)


@pytest.fixture(params=NOTEBOOKS)
def chapter(request, notebooks):
    return request.param, notebooks[request.param]


def code_cells(nb):
    return [(c, *directives(c.source)) for c in nb.cells if c.cell_type == 'code']


def statements(source):
    try:
        return ast.parse(source).body
    except SyntaxError:  # a magic
        return []


def test_begins_with_a_title_and_one_line(chapter):
    name, nb = chapter
    first = nb.cells[0]
    assert first.cell_type == 'markdown'
    lines = [line for line in first.source.split('\n') if line.strip()]
    assert re.match(r'# \S', lines[0])
    assert len(lines) > 1 and lines[1].startswith('> '), 'the second line is the `>` line'


def test_headings_go_down_a_level_at_a_time(chapter):
    _, nb = chapter
    text = '\n'.join(c.source for c in nb.cells if c.cell_type == 'markdown')
    text = re.sub(r'^```.*?^```', '', text, flags=re.MULTILINE | re.DOTALL)
    levels = [len(hashes) for hashes in re.findall(r'^(#+) ', text, re.MULTILINE)]
    jumps = [(a, b) for a, b in itertools.pairwise(levels) if b > a + 1]
    assert not jumps, 'the book does not build with a heading that leaves a level out'


def test_kernel_and_no_outputs(chapter):
    name, nb = chapter
    assert nb.metadata.kernelspec.name == 'python3'
    assert not [c.id for c in nb.cells if c.get('outputs') or c.get('execution_count')]
    assert all('nbdev_clean' not in c.source for c in nb.cells if c.cell_type == 'code')


def one_whole(source):
    "Is a cell one class or one function, with bodies that can be seen at once? Signatures are documentation."
    body = [n for n in ast.parse(source).body if not isinstance(n, ast.Assign)]
    if len(body) != 1 or not isinstance(body[0], ast.ClassDef | ast.FunctionDef):
        return False
    functions = [n for n in ast.walk(body[0]) if isinstance(n, ast.FunctionDef)]
    return all(f.end_lineno - f.body[0].lineno < 40 for f in functions)


def test_code_cells_are_short(chapter):
    name, nb = chapter
    long = {
        c.id: n
        for c, _, source in code_cells(nb)
        if (n := len(source.strip().split('\n'))) > 40 and not one_whole(source)
    }
    assert not long, f'cells of more than 40 lines: {long}'


def test_imports_stand_alone(chapter):
    name, nb = chapter
    mixed = []
    for cell, found, source in code_cells(nb):
        if 'export' not in found:
            continue
        kinds = {
            isinstance(s, (ast.Import, ast.ImportFrom)) for s in statements(source) if not typing_block(s)
        }
        if len(kinds) == 2:
            mixed.append(cell.id)
    assert not mixed, f'imports beside other code: {mixed}'


def typing_block(node):
    return isinstance(node, ast.If) and 'TYPE_CHECKING' in ast.dump(node.test)


def longest_chain(nb):
    "Count the most export cells in a row; words and hidden cells between them do not part them, lessons do."
    exports = ('export', 'exporti', 'exports')
    kinds = [
        any(e in found for e in exports)
        for _, found, _ in code_cells(nb)
        if not found.keys() & {'hide', 'default_exp'}
    ]
    return max((len(list(run)) for exported, run in itertools.groupby(kinds) if exported), default=0)


def test_lessons_part_what_is_exported(chapter):
    name, nb = chapter
    longest = longest_chain(nb)
    assert longest <= 2, f'{longest} export cells in a row: show between them what they do'


def test_lesson_cells_end_with_a_value(chapter):
    name, nb = chapter
    prints = [
        c.id
        for c, found, source in code_cells(nb)
        if re.match(r'print\(\w+\)$', source.strip().split('\n')[-1])
    ]
    assert not prints, f'end with the value itself instead of print: {prints}'


def test_enough_words(chapter):
    name, nb = chapter
    words = sum(c.cell_type == 'markdown' for c in nb.cells)
    kinds = [
        (c.cell_type, 'export' in directives(c.source)[0] if c.cell_type == 'code' else False)
        for c in nb.cells
        if c.cell_type != 'code' or not directives(c.source)[0].keys() & {'hide', 'default_exp'}
    ]
    runs = [kind for kind, _ in itertools.groupby(kinds)]  # export cells without a break count as one
    code = sum(kind == 'code' for kind, _ in runs) + sum(
        len(list(group)) - 1 for kind, group in itertools.groupby(kinds) if kind == ('code', False)
    )
    assert 2 * words >= code, f'{words} text cells for {code} code cells'


def test_figures_have_words(chapter):
    name, nb = chapter
    for cell, found, source in code_cells(nb):
        if 'fig-cap' in found or 'label' in found:
            assert found.get('fig-alt'), f'{cell.id} has a figure without fig-alt'
            assert found.get('label', 'fig-').startswith('fig-')
    for cell in nb.cells:
        if cell.cell_type == 'markdown':
            assert not re.search(r'!\[\s*\]\(', cell.source), f'{cell.id} has a picture without a text'
            assert not re.search(r'!\[[^\]]*\]\(\s*https?:', cell.source), (
                f'{cell.id} has a picture from a network'
            )


def test_lessons_and_studies_do_not_mix(chapter):
    name, nb = chapter
    exports = [
        c.id
        for c, found, _ in code_cells(nb)
        if found.keys() & {'export', 'exporti', 'exports', 'default_exp'}
    ]
    parameters = [c for c in nb.cells if 'parameters' in c.metadata.get('tags', [])]
    assert not (exports and parameters), 'a study exports nothing'
    assert len(parameters) <= 1
    if name in STUDIES:
        assert parameters, 'a study has a cell with the tag parameters'
        for node in statements(parameters[0].source):
            assert (
                isinstance(node, (ast.Assign, ast.AnnAssign)) and ast.literal_eval(node.value) is not Ellipsis
            )
        assert re.search(r'^seed\b', parameters[0].source, re.M), 'seed is always a parameter'


def test_lesson_has_its_number_and_exports_its_name(chapter):
    name, nb = chapter
    found = [d['default_exp'] for _, d, _ in code_cells(nb) if 'default_exp' in d]
    if found:
        assert re.fullmatch(rf'\d\d[a-z]?_{re.escape(found[0])}', name)
        assert found[0] in MODULES


def test_no_forbidden_words(root):
    "Nothing tells of the machine the book was written on."
    machine = [re.escape(f'{p}/') for p in (root, Path.home() / '.cache') if len(p.parts) > 2]
    words = [
        *machine,
        r'https?://[^\s)]*py(?:pi\b|thonhosted)',
        'allow_pickle=True',
        '^import pickle',
        'shell=True',
    ]
    forbidden = re.compile('|'.join(words), re.M)
    files = [
        *(root / 'nbs').glob('*.*'),
        *(root / 'resonance_nb').glob('*.py'),
        *root.glob('*.md'),
        root / 'requirements.lock',
    ]
    found = [
        f'{p.name}: {m[0]}'
        for p in files
        if p.is_file()
        for m in forbidden.finditer(p.read_text(encoding='utf-8'))
    ]
    assert not found


def public(module):
    "The public functions and classes a module defines."
    for name in getattr(module, '__all__', None) or dir(module):
        value = getattr(module, name, None)
        if not name.startswith('_') and getattr(value, '__module__', '') == module.__name__:
            if inspect.isfunction(value) or inspect.isclass(value):
                yield name, value


def classes_of(path):
    return [n for n in ast.parse(path.read_text(encoding='utf-8')).body if isinstance(n, ast.ClassDef)]


OWN = {c.name: c for path in sorted((ROOT / 'resonance_nb').glob('*.py')) for c in classes_of(path)}


def is_guest(cls):
    "Does a class speak another library's language, whose names are explained there?"
    bases = {ast.unparse(b).split('[')[0] for b in cls.bases}
    return bool(bases - OWN.keys() - {'Protocol', 'Exception'})


def explained_above(cls, name):
    "Does a class of the package that this one derives from have the method, too? There its parameters are explained."
    bases = [OWN[base] for b in cls.bases if (base := ast.unparse(b).split('[')[0]) in OWN]
    return name != '__init__' and any(
        any(isinstance(m, ast.FunctionDef) and m.name == name for m in base.body)
        or explained_above(base, name)
        for base in bases
    )


def bare_parameters(path, name):
    "The parameters of a top-level function, or of the public methods of a class, that no comment explains."
    text = path.read_text(encoding='utf-8')
    comments = [t for t in tokenize.generate_tokens(StringIO(text).readline) if t.type == tokenize.COMMENT]
    behind = {t.start[0] for t in comments}
    above = {t.start[0] + 1 for t in comments if not t.line[: t.start[1]].strip()}

    def bare(function):
        arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
        return [a.arg for a in arguments if a.arg not in ('self', 'cls') and a.lineno not in behind | above]

    found = []
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            found += bare(node)
        elif isinstance(node, ast.ClassDef) and node.name == name and not is_guest(node):
            methods = [
                m
                for m in node.body
                if isinstance(m, ast.FunctionDef)
                and (not m.name.startswith('_') or m.name == '__init__')
                and not explained_above(node, m.name)
            ]
            found += [f'{m.name}({a})' for m in methods for a in bare(m)]
    return found


@pytest.mark.parametrize('module', MODULES)
def test_everything_public_is_explained(module):
    path = ROOT / 'resonance_nb' / f'{module}.py'
    found = importlib.import_module(f'resonance_nb.{module}')
    assert found.__doc__ and found.__doc__.strip(), 'the module has no docstring: the `>` line is missing'
    silent = []
    bare = {}
    for name, value in public(found):
        doc = inspect.getdoc(value) or ''
        if not doc or (inspect.isclass(value) and doc.startswith(f'{name}(')):
            silent.append(name)
        if (inspect.isfunction(value) or inspect.isclass(value)) and (left := bare_parameters(path, name)):
            bare[name] = left
    assert not silent, f'no docstring: {silent}'
    assert not bare, f'parameters without a comment: {bare}'


def imports_of(path):
    "Modules of the package that a module imports, at its top or within a function."
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.ImportFrom):
            module = node.module or ''
            if node.level == 1 and module:  # nbdev writes `from .core import …`
                found.add(module.split('.')[0])
            elif node.level == 1 or module == 'resonance_nb':  # `from resonance_nb import audio`
                found |= {a.name for a in node.names if a.name in MODULES}
            elif module.startswith('resonance_nb.'):
                found.add(module.split('.')[1])
        elif isinstance(node, ast.Import):
            found |= {a.name.split('.')[1] for a in node.names if a.name.startswith('resonance_nb.')}
    return found - {path.stem}


FLOORS = [
    'core',
    'files samples',
    'chunks bitstreams',
    'packets',
    'ffmpeg',
    'sndfile',
    'decode timing metrics',
    'sandbox kinds openset',
    'audio',
    'voices mix scores',
    'show',
    'calibration',
    'recogniser',
    'store tags',
    'segments rows identity',
    'workers indexing checkup',
    'catalog songlist corpora starter download archives datasets sources',
    'responses rooms crowd stages draws',
    'dynamics codec warp',
    'chain',
    'bank',
    'venue batched',
    'long_concert',
    'augment degraded queries',
    'windows clips figures',
    'bench',
    'network fronts constant_q checkpoints graphs',
    'packages',
    'pretrained',
    'teachers raters feel_model',
    'feel_net',
    'encoders losses recipe feel_losses feel_export feel_teach',
    'feel_train',
    'learning',
    'codebook match',
    'neighbours',
    'index',
    'verify',
    'peaks',
    'hashes',
    'landmarks chromaprint mfcc embedding',
    'lab extractors',
    'mining table',
    'evidence',
    'batches',
    'train',
    'stream',
    'pipe microphone',
    'session',
    'fuse',
    'decide',
    'concert',
    'setlist tuning',
    'feel_features feel_songs feel_space',
    'feel_eval feel_layer feel_people feel_personal',
    'feel_changes feel_systems feel_agreement feel_folds',
    'packs',
    'answers',
    'services',
    'acrcloud',
    'runs',
    'reporting',
    'report trials compare survey vectors small',
    'adaptors hubs',
    'calibrate',
    'feel_library feel_make',
    'feel_radio feel_lineup',
    'feel_map',
    'guard listeners pages',
    'connection',
    'serve',
    'survey_clips survey_store',
    'survey_plan survey_report',
    'survey_app survey_formats survey_make',
    'survey_learn',
    'book front cli_options',
    'cli_catalog cli_identify cli_listen cli_corpus cli_bench cli_train cli_calibrate cli_feel cli_feel_train '
    'cli_serve cli_survey',
    'cli',
]


def test_pages_have_short_lines():
    "ruff sees to Python; what browsers read is read by people too."
    long = [
        f'{path.name}:{i}'
        for path in sorted((ROOT / 'resonance_nb' / 'web').iterdir())
        for i, line in enumerate(path.read_text(encoding='utf-8').splitlines(), 1)
        if len(line) > 110
    ]
    assert not long, 'lines over 110 characters: ' + ', '.join(long)


def test_classes_are_whole():
    "Nobody attaches a method from outside: help, tracebacks and editors see a class where it is written."
    for path in sorted((ROOT / 'resonance_nb').glob('*.py')):
        tree = ast.parse(path.read_text(encoding='utf-8'))
        names = {n.name for n in ast.walk(tree) if isinstance(n, ast.ClassDef)} | OWN.keys()
        targets = [
            t
            for n in ast.walk(tree)
            if isinstance(n, ast.Assign)
            for target in n.targets
            for t in ast.walk(target)
        ]
        attached = [
            f'{t.value.id}.{t.attr}'
            for t in targets
            if isinstance(t, ast.Attribute) and isinstance(t.value, ast.Name) and t.value.id in names
        ]
        assert not attached, f'{path.name} attaches {", ".join(attached)}'


@pytest.mark.parametrize('module', MODULES)
def test_methods_are_named_after_their_class(module):
    found = importlib.import_module(f'resonance_nb.{module}')
    for name, cls in public(found):
        if inspect.isclass(cls) and cls.__module__ == found.__name__:
            for attribute, value in vars(cls).items():
                function = getattr(value, '__func__', getattr(value, 'fget', value))
                if inspect.isfunction(function) and not attribute.startswith('_'):
                    assert function.__qualname__ == f'{name}.{attribute}'


def test_editors_complete_what_a_class_can_do():
    jedi = pytest.importorskip('jedi')
    source = 'from resonance_nb.catalog import Catalog\nCatalog("music").ident'
    assert 'identify' in [c.name for c in jedi.Script(source, project=jedi.Project(ROOT)).complete(2)]


def test_no_function_takes_the_place_of_another():
    for path in sorted((ROOT / 'resonance_nb').glob('*.py')):
        names = [
            n.name for n in ast.parse(path.read_text()).body if isinstance(n, ast.FunctionDef | ast.ClassDef)
        ]
        twice = {n for n in names if names.count(n) > 1}
        assert not twice, f'{path.name} defines {", ".join(sorted(twice))} twice'


def test_imports_go_down():
    floor = {name: i for i, names in enumerate(FLOORS) for name in names.split()}
    assert set(MODULES) <= set(floor), f'name the floor of {set(MODULES) - set(floor)}'
    edges = [(m, needed) for m in MODULES for needed in imports_of(ROOT / 'resonance_nb' / f'{m}.py')]
    assert len(edges) > 150, 'the imports are not seen'
    up = [f'{m} imports {needed}' for m, needed in edges if floor[needed] > floor[m]]
    assert not up


def test_the_map_shows_every_module(root):
    "CONTRIBUTING's map and FLOORS name the same modules."
    text = (root / 'CONTRIBUTING.md').read_text(encoding='utf-8')
    rows = re.findall(r'^\|.*\|$', text.split('## The map of the house')[1].split('\n## ')[0], re.M)
    shown = re.findall(r'`(\w+)`', '\n'.join(rows))
    floors = ' '.join(FLOORS).split()
    apart = set(shown) ^ set(floors) | set(floors) ^ set(MODULES)
    assert not apart, (
        f"{sorted(apart)}: add it to FLOORS here and to CONTRIBUTING's map, or take it out of both"
    )
    twice = [m for m in set(shown) if shown.count(m) > 1 or floors.count(m) > 1]
    assert not twice, f'{twice} stand twice'


# ---- one list of versions


def pins(root):
    from packaging.requirements import Requirement

    lines = (root / 'requirements.lock').read_text(encoding='utf-8').split('\n')
    return [Requirement(line) for line in lines if line.strip() and not line.startswith('#')]


def test_every_pin_is_exact_and_alone(root):
    names = [p.name.lower().replace('_', '-') for p in pins(root)]
    assert len(names) > 100 and len(names) == len(set(names))
    assert all(len(p.specifier) == 1 and str(p.specifier).startswith('==') for p in pins(root))


def test_lock_satisfies_settings(root):
    from packaging.requirements import Requirement

    config = ConfigParser(delimiters=['='])
    config.read(root / 'settings.ini', encoding='utf-8')
    settings = config['DEFAULT']
    # of one chapter, heavy or bound to a platform; what of them the book needs is in `extras_book`
    optional = ('extras_enhance', 'extras_separate')
    keys = [
        k
        for k in settings
        if k in ('requirements', 'dev_requirements') or k.startswith('extras_') and k not in optional
    ]
    wanted = [Requirement(r) for k in keys for r in settings[k].split()]
    known = {p.name.lower().replace('_', '-'): next(iter(p.specifier)).version for p in pins(root)}
    assert len(wanted) > 15
    bad = [
        str(w)
        for w in wanted
        if known.get(w.name.lower().replace('_', '-'), '') not in w.specifier
        or w.name.lower().replace('_', '-') not in known
    ]
    assert not bad, f'not in requirements.lock, or another version: {bad}'


def test_environment_points_at_the_lock(root):
    import yaml

    text = (root / 'environment.yml').read_text(encoding='utf-8')
    assert {'python=3.11', 'pip'} <= {*yaml.safe_load(text)['dependencies']}
    # conda installs a list with all that its packages name, which some of them must not get
    assert 'pip install --no-deps -r requirements.lock' in text


def test_the_installed_versions_are_the_locked_ones(root):
    from importlib.metadata import PackageNotFoundError, version

    wrong = []
    for pin in pins(root):
        if pin.marker is None or pin.marker.evaluate():
            try:
                have = version(pin.name)
            except PackageNotFoundError:
                have = 'nothing'
            if have not in pin.specifier if have != 'nothing' else True:
                wrong.append(f'{pin.name}: {have}')
    assert not wrong, f'install requirements.lock again: {wrong}'


def test_the_bibliography_is_whole(root):
    bibtex = pytest.importorskip('pybtex.database')
    found = bibtex.parse_file(root / 'references.bib')
    assert len(found.entries) > 100
