"""Package metadata, read from settings.ini so that there is one place to edit."""
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

config = ConfigParser(delimiters=['='])
config.read(Path(__file__).parent / 'settings.ini', encoding='utf-8')
project = config['DEFAULT']
extras = {key.removeprefix('extras_'): value.split() for key, value in project.items() if key.startswith('extras_')}
extras['dev'] = project['dev_requirements'].split() + extras['book']

setup(
    name=project['lib_name'],
    version=project['version'],
    description=project['description'],
    long_description=(Path(__file__).parent / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    author=project['author'],
    keywords=project['keywords'],
    packages=[*find_packages(include=['resonance_nb', 'resonance_nb.*']), 'resonance_nb.manifests'],
    package_dir={'resonance_nb': 'resonance_nb', 'resonance_nb.manifests': 'data/corpora'},  # the corpora's tables travel along
    package_data={'resonance_nb': ['py.typed', 'models/*', 'texts/*', 'web/*'], 'resonance_nb.manifests': ['*.csv']},
    python_requires=f">={project['min_python']},<3.14",
    install_requires=project['requirements'].split(),
    extras_require=extras,
    entry_points={'console_scripts': project['console_scripts'].split()},
    zip_safe=False,
)
