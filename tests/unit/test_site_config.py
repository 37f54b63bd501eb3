"""``site.toml``: what it means, and what is said about a wrong one."""

from pathlib import Path

import pytest
from pydantic import BaseModel

from iedn.config import FrozenModel
from iedn.errors import ConfigError
from iedn.toml import config_error_from, load_toml
from sites.config import SiteConfig, find_site, load_site_config

EXAMPLES = Path(__file__).parents[2] / "sites" / "examples"
SMALLEST = 'name = "hospital-a"\nmanifest = "m.csv"\n'


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_relative_paths_start_at_the_folder_of_the_file(tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    text = 'name = "a"\nmanifest = "cohort/m.csv"\n[coordinator]\naddress="h:1"\nca="tls/ca.crt"\n'
    config = load_site_config(write(tmp_path / "kit" / "site.toml", text))
    assert config.manifest == tmp_path / "kit" / "cohort" / "m.csv"
    assert config.folder == tmp_path / "kit"
    assert config.cache == tmp_path / "kit" / "cache"
    assert config.coordinator is not None
    assert config.coordinator.ca == tmp_path / "kit" / "tls" / "ca.crt"


def test_absolute_paths_stay_and_the_cache_follows_the_folder(tmp_path):
    config = load_site_config(
        write(tmp_path / "site.toml", 'name="a"\nmanifest="/data/m.csv"\nfolder="/out"\n')
    )
    assert (config.manifest, config.cache) == (Path("/data/m.csv"), Path("/out/cache"))


def test_two_sites_described_in_one_folder_do_not_share_outputs(tmp_path):
    folders = [load_site_config(write(tmp_path / f"{name}.toml", SMALLEST)).folder for name in "ab"]
    assert folders == [tmp_path / "a", tmp_path / "b"]


def test_defaults_protect_the_hospital(tmp_path):
    config = load_site_config(write(tmp_path / "site.toml", SMALLEST))
    assert (config.policy.min_patients, config.policy.min_group_sites) == (10, 3)
    assert config.policy.reveal_small_group is False
    assert "diagnostic" not in config.policy.releases


@pytest.mark.parametrize(
    ("extra", "key", "came", "allowed"),
    [
        ('device = "gpu"', "device", "'gpu'", "cuda"),
        ('role = "trian"', "role", "'trian'", "'train' or 'evaluate'"),
        ("threads = 0", "threads", "0", "greater than or equal to 1"),
        ("[policy]\nmin_patients = 0", "policy.min_patients", "0", "greater than or equal to 1"),
        ('[policy]\nreleases = ["all"]', "policy.releases[0]", "'all'", "'diagnostic'"),
        ("[policy]\nmax_update_norm = -1.5", "policy.max_update_norm", "-1.5", "greater than 0"),
        ("[policy]\nmin_patient = 5", "policy.min_patient", "5", "min_patients, min_group_sites"),
        ("[split]\ntrain = 0.9", "split", "0.9", "sum to 1"),
        ('[split]\nseed = "x"', "split.seed", "'x'", "valid integer"),
        ('[coordinator]\naddress = "host"', "coordinator.address", "'host'", "pattern"),
        ('[coordinator]\naddress = "h:1"\nca = 3', "coordinator.ca", "3", "path"),
        ("colour = 1", "colour", "1", "name, role, manifest"),
    ],
)
def test_a_wrong_value_is_named_with_file_key_value_and_what_is_allowed(
    tmp_path, extra, key, came, allowed
):
    file = write(tmp_path / "site.toml", SMALLEST + extra + "\n")
    with pytest.raises(ConfigError) as caught:
        load_site_config(file)
    assert caught.value.where == f"{file}: {key}"
    assert came in caught.value.problem
    assert allowed in caught.value.allowed
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("name", ["", "Hospital", "-a", "a_b", "a" * 32, "../x"])
def test_a_name_that_could_not_be_a_folder_is_refused(tmp_path, name):
    file = write(tmp_path / "site.toml", f'name = "{name}"\nmanifest = "m.csv"\n')
    with pytest.raises(ConfigError, match="name: got"):
        load_site_config(file)


def test_missing_keys_are_all_named(tmp_path):
    with pytest.raises(ConfigError) as caught:
        load_site_config(write(tmp_path / "site.toml", 'device = "tpu"\n'))
    assert str(caught.value).count("site.toml") == 1
    for key in ("name", "manifest", "device"):
        assert key in str(caught.value)


def test_syntax_errors_name_the_line(tmp_path):
    with pytest.raises(ConfigError, match=r"site\.toml.*line 2"):
        load_toml(write(tmp_path / "site.toml", 'name = "a"\nrole = \n'))


def test_files_that_are_not_text_or_not_there(tmp_path):
    (tmp_path / "latin.toml").write_bytes(b'a = 1\nname = "K\xf6ln"\n')
    with pytest.raises(ConfigError, match="line 2 is not UTF-8"):
        load_toml(tmp_path / "latin.toml")
    with pytest.raises(ConfigError, match="does not exist"):
        load_toml(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_toml(tmp_path)


def test_a_byte_order_mark_is_no_error(tmp_path):
    (tmp_path / "site.toml").write_bytes(b"\xef\xbb\xbf" + SMALLEST.encode())
    assert load_site_config(tmp_path / "site.toml").name == "hospital-a"


def test_unknown_keys_in_a_list_of_tables_are_answered_with_the_keys_there():
    class Inner(FrozenModel):
        size: int

    class Outer(FrozenModel):
        parts: tuple[Inner, ...]

    error = _validation_error(Outer, {"parts": [{"size": 1}, {"size": 2, "sise": 3}]})
    converted = config_error_from(error, "f.toml", model=Outer)
    assert converted.where == "f.toml: parts[1].sise"
    assert converted.allowed == "size"


def _validation_error(model: type[BaseModel], content: object):
    from pydantic import ValidationError

    with pytest.raises(ValidationError) as caught:
        model.model_validate(content)
    return caught.value


def test_a_name_is_looked_for_in_three_places_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IEDN_SITES", str(tmp_path / "etc"))
    places = [
        tmp_path / "etc" / "qilu.toml",
        tmp_path / "sites" / "qilu.toml",
        tmp_path / "kits" / "qilu" / "site.toml",
    ]
    for place in places:
        write(place, SMALLEST)
        assert find_site("qilu").resolve() == place


def test_a_path_is_taken_as_it_is(tmp_path):
    file = write(tmp_path / "kit" / "site.toml", SMALLEST)
    assert find_site(file) == file
    assert find_site(str(tmp_path / "kit")) == file


def test_a_site_that_is_nowhere_lists_the_places(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("IEDN_SITES", raising=False)
    with pytest.raises(ConfigError) as caught:
        find_site("qilu")
    for place in ("kits/qilu/site.toml", "sites/qilu.toml", "$IEDN_SITES"):
        assert place in str(caught.value)
    with pytest.raises(ConfigError, match=r"looked for other/site\.toml"):
        find_site("other/site.toml")


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.toml")), ids=lambda p: p.stem)
def test_the_shipped_examples_are_valid(example):
    assert load_site_config(example).role == example.stem


def test_the_training_example_shows_every_key():
    text = (EXAMPLES / "train.toml").read_text()
    sections = {"policy", "privacy", "split", "preprocessing", "coordinator"}
    for name, field in SiteConfig.model_fields.items():
        shown = f"\n[{name}]" if name in sections else f"{name} = "
        assert shown in text
        annotation = str(field.annotation)
        assert name in sections or "Config" not in annotation
    for section in ("PolicyConfig", "PrivacyConfig", "SplitConfig", "CoordinatorConfig"):
        model = getattr(__import__("sites.config", fromlist=[section]), section)
        for key in model.model_fields:
            assert f"{key} = " in text
