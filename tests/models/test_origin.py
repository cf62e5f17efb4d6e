"""Where a dense model comes from and on what terms, as its folder and its own card say."""

from __future__ import annotations

from pathlib import Path

import pytest

from spp_cli.models.checkpoint import locate
from spp_cli.models.origin import licence_files, origin


def test_a_model_in_the_hubs_cache_is_named_as_the_hub_does(tmp_path: Path) -> None:
    folder = tmp_path / "models--owner--a-model" / "snapshots" / ("0" * 40)
    folder.mkdir(parents=True)
    assert origin(folder) == {"hub_id": "owner/a-model", "revision": "0" * 40}


def test_terms_and_languages_are_those_of_the_models_own_card(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(
        "---\nlicense: other\nlicense_name: llama2\nlicense_link: LICENSE.txt\nlanguage: [en, no]\n"
        "tags: [chat]\n---\n# A model\n---\nlicense: mit\n"
    )
    assert origin(tmp_path) == {
        "license": "other",
        "license_name": "llama2",
        "license_link": "LICENSE.txt",
        "language": ["en", "no"],
    }


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_the_licence_of_a_card_is_read_in_any_encoding(tmp_path: Path, encoding: str) -> None:
    card = "---\r\nlicense: other\r\nlicense_name: café\r\n---\r\n# “A model”\r\n"
    (tmp_path / "README.md").write_bytes(card.encode(encoding))
    assert origin(tmp_path) == {"license": "other", "license_name": "café"}


def test_the_embedded_model_says_its_licence() -> None:
    assert origin(locate("demo")[0]) == {"license": "apache-2.0"}


@pytest.mark.parametrize(
    "card",
    [
        "# license: mit\n",
        "---\n- license: mit\n---\n",
        "---\nlicense: [unclosed\n---\n",
        "---\nlicense:\n---\n",
        "---\nlicense: 3\n---\n",
        "",
        b"\xff\xfe---",
    ],
)
def test_a_card_that_names_no_licence_in_its_front_matter_leaves_it_unknown(
    tmp_path: Path, card: str | bytes
) -> None:
    (tmp_path / "README.md").write_bytes(card if isinstance(card, bytes) else card.encode())
    assert origin(tmp_path) == {}


def test_the_files_with_the_terms_are_found_and_no_others(tmp_path: Path) -> None:
    terms = ("LICENCE.md", "LICENSE", "NOTICE.txt", "USE_POLICY.md")
    for name in (*terms, "config.json", "a.LICENSE"):
        (tmp_path / name).write_text("")
    (tmp_path / "LICENSES").mkdir()
    found = [path.name for path in licence_files(tmp_path)]
    assert found == list(terms)
