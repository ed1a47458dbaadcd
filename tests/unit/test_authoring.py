"""Recipes become workflow files: values in the order in which they are read, mistakes as sentences, tidy notes."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
from test_prompt_converter import INFO

from cascade_studio.commands.messages import Stop
from cascade_studio.commands.workflow.api_prompt import Converted, convert
from cascade_studio.commands.workflow.widgets import read_widgets, write_values
from tools import small
from tools.authoring.flow import Flow, unwrap
from tools.authoring.recipes import RECIPES, parts, text_to_image
from tools.authoring.write import workflow
from tools.edit import fit_files
from tools.scenes import FIRST, SCENES, SHEET
from tools.titles import WORDS, title_of
from training.mini.data import read_split
from training.mini.outlines import SUBJECTS
from training.mini.subjects import COLOURS

OUTPUTS = {"Load": (["MODEL", "CLIP"], ["MODEL", "CLIP"]), "Text": (["CONDITIONING"], ["CONDITIONING"])}
DEFINITIONS = {
    name: {"output": OUTPUTS.get(name, ([], []))[0], "output_name": OUTPUTS.get(name, ([], []))[1], **definition}
    for name, definition in INFO.items()
}


@pytest.mark.parametrize(
    "kind, given, expected",
    [
        (
            "Sample",
            {"seed": 7, "cfg": 2.0, "sampler": "y"},
            {"seed": 7, "steps": 20, "cfg": 2.0, "sampler": "y", "noise": 1.0},
        ),
        ("Plain", {"loose": 4}, {"noise_seed": 0, "count": 3, "loose": 4}),
        (
            "Dynamic",
            {"mode": "on", "mode.deep.q": 5, "tail": 9},
            {"mode": "on", "mode.s": 1.5, "mode.deep": "p", "mode.deep.q": 5, "tail": 9},
        ),
        ("Save", {}, {"prefix": "ComfyUI"}),
        ("Image", {"image": "i.png"}, {"image": "i.png", "after": 0}),
    ],
)
def test_values_are_read_as_they_were_written(kind, given, expected):
    values = write_values(INFO[kind], given)
    assert {widget.name: widget.box.value for widget in read_widgets(INFO[kind], values)} == expected
    assert all(widget.box.stored for widget in read_widgets(INFO[kind], values))


def test_the_upload_button_has_a_value_of_its_own():
    definition = {"input": {"required": {"image": [["i.png"], {"image_upload": True}]}}}
    assert write_values(definition, {"image": "i.png"}) == ["i.png", "image"]


def test_seeds_say_what_happens_after_a_run():
    assert write_values(INFO["Sample"], {"sampler": "x"}, "randomize")[:2] == [0, "randomize"]


def test_a_choice_of_files_has_to_be_given():
    with pytest.raises(ValueError, match="'name' needs a value"):
        write_values(INFO["Load"], {})


def test_a_default_that_follows_the_machine_is_not_written():
    definition = {"input": {"required": {"width": ["INT", {"default": 1024, "authored": 256}]}}}
    assert write_values(definition, {}) == [256] and write_values(definition, {"width": 640}) == [640]


def simple(**inputs) -> Flow:
    flow = Flow("simple")
    flow.step("Load")
    load = flow.add("Load", name="a.safetensors")
    flow.step("Text")
    flow.add("Text", **{"clip": load["CLIP"], "text": "hello", **inputs})
    flow.note("Model Links", "## Models\n\none\ntwo")
    flow.feature(flow.nodes[1], text="")
    return flow


def test_a_flow_becomes_a_workflow_that_converts():
    prompt = convert(workflow(simple(), DEFINITIONS), DEFINITIONS).prompt
    assert prompt["2"]["inputs"] == {"text": "hello", "clip": ["1", 1]}


@pytest.mark.parametrize(
    "change, words", [({"colour": 1}, "Text has no input colour"), ({"clip": None}, "Text needs a wire into 'clip'")]
)
def test_mistakes_in_a_recipe_are_sentences(change, words):
    with pytest.raises(Stop, match=words):
        workflow(simple(**change), DEFINITIONS)


def test_an_output_that_is_not_there_is_a_sentence():
    flow = simple()
    flow.nodes[1].inputs["clip"] = flow.nodes[0]["VAE"]
    with pytest.raises(Stop, match="no output 'VAE'; it has MODEL, CLIP"):
        workflow(flow, DEFINITIONS)


def test_a_recipe_has_to_say_what_it_shows():
    flow = simple()
    flow.features.clear()
    with pytest.raises(Stop, match="does not say what it shows"):
        workflow(flow, DEFINITIONS)


def test_two_files_for_one_part_stay_two_on_small_weights():
    names = ["stage_c_bf16.safetensors", "stage_c_lite_bf16.safetensors", "stage_c_bf16.safetensors"]
    converted = Converted({str(i): {"class_type": "Load", "inputs": {"prior": name}} for i, name in enumerate(names)})
    small.use(converted, small.FAMILY)
    first, other, again = (node["inputs"]["prior"] for node in converted.prompt.values())
    assert first == again == "stage_c.safetensors" and other == "tuned_prior.safetensors"


def test_notes_keep_each_paragraph_on_one_line():
    given = "## Title\n\na paragraph\nof two lines\n\n1. an item\n   of two\n2. another\n- point\n\nend"
    assert unwrap(given) == "## Title\n\na paragraph of two lines\n\n1. an item of two\n2. another\n- point\n\nend\n"


def test_small_weights_are_mini_only_if_every_part_is_there(tmp_path):
    for name in list(small.MINI_FILES.values())[:3]:
        path = tmp_path / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    kit = small.mini(tmp_path)
    assert kit.covers({"prior", "decoder", "text_encoder"}) and not kit.covers({"prior", "stage_a"})


@pytest.mark.parametrize(
    "name, value, role",
    [
        ("prior", "stage_c_bf16.safetensors", "prior"),
        ("ckpt_name", "stable_cascade_stage_b.safetensors", "decoder"),
        ("stage_a", "from the checkpoint", "stage_a"),
        ("lora", "x.safetensors", "lora"),
        ("steps", 3, None),
        ("controlnet", "stable_cascade_inpainting.safetensors", "controlnet_inpainting"),
        ("text", "a cat", None),
        ("controlnet", "cascade_mini_canny.safetensors", "controlnet_canny"),
        ("prior", "none", None),
    ],
)
def test_roles_of_files(name, value, role):
    assert small.role_of(name, value) == role


def test_the_first_picture_is_the_first_of_the_list():
    """The host lists files as the system gives them, most systems and the browser's own sorting by name."""
    first = title_of("a_first_picture")
    names = [path.stem for path in Path(small.REPOSITORY, "workflows").glob("*.json")]
    assert min(names, key=str.casefold) == first and (first in RECIPES) == parts.ships()
    assert all(len(name.split()) > len(first.split()) for name in names if name != first), "a search prefers few words"


def test_every_workflow_has_a_name_for_people():
    """With the model's name in front, which a search finds, and none that a recipe has lost."""
    assert set(WORDS) == {recipe.__name__ for recipe in RECIPES.values()}
    assert all(name.startswith("Stable Cascade - ") and "_" not in name for name in RECIPES)


def test_the_first_picture_runs_on_what_comes_with_the_pack():
    """Mini by its preset, at its own size, with words that it knows and a note on how to begin."""
    flow = text_to_image.a_first_picture()
    (block,) = [node.block for node in flow.nodes if node.block]
    nodes = {(node.title or node.kind): node for node in (*block.flow.nodes, *flow.notes)}
    load, canvas = nodes["CascadeStudio_Load"].inputs, nodes["CascadeStudio_Canvas"].inputs
    assert load["preset"] == parts.files.preset_title("cascade-mini")
    assert {load[role] for role in small.PAINTS} == {parts.mini_name(role) for role in small.PAINTS}
    assert (canvas["width"], canvas["height"]) == (small.MINI_SIDE, small.MINI_SIDE)
    steps = [nodes[f"CascadeStudio_Sample{stage}"].inputs["steps"] for stage in ("Prior", "Decoder")]
    assert steps == [small.MINI_PRIOR_STEPS, small.MINI_DECODER_STEPS]
    assert nodes["CascadeStudio_SamplePrior"].inputs["cfg"] == small.MINI_PRIOR_CFG
    assert nodes["Prompt"].inputs["text"] == FIRST.prompt == "red apple on a blue background"
    assert "Press **Run**" in nodes["Your first picture"].inputs[""]


def test_scenes_are_words_that_mini_was_trained_on():
    subjects = {subject.labels["en"]: subject for subject in read_split()[0]}
    for scene in (*SCENES.values(), *SHEET):
        assert scene.background in COLOURS and scene.background not in subjects[scene.subject].held, scene
        assert scene.subject in SUBJECTS, "the tests' eyes know it"


UNKEPT = {"preset": "x", "missing_files": "automatic"}


def test_a_workflow_is_made_fit_for_mini_as_a_whole_or_not_at_all(monkeypatch):
    prompt = {
        "1": {"class_type": "CascadeStudio_Load", "inputs": {"prior": "stage_c_bf16.safetensors", **UNKEPT}},
        "2": {"class_type": "CascadeStudio_Canvas", "inputs": {"width": 1024, "height": 640}},
        "3": {"class_type": "SolidMask", "inputs": {"width": 512, "height": 640}},
        "4": {"class_type": "LoadImage", "inputs": {"image": "example.png"}},
        "5": {"class_type": "KSampler", "inputs": {"steps": 20, "cfg": 4.0, "positive": ["6", 0]}},
        "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a castle"}},
        "7": {"class_type": "KSampler", "inputs": {"cfg": 1.1}},
        "8": {"class_type": "KSampler", "inputs": {"cfg": ["9", 0]}},
    }
    converted = Converted(copy.deepcopy(prompt))
    monkeypatch.setattr(small, "mini", lambda: small.Kit("no file", {}))
    assert not small.for_mini(converted, {}, FIRST, "apple.png") and converted.prompt == prompt
    monkeypatch.setattr(small, "mini", lambda: small.Kit("Mini", {"prior": "mini_c.safetensors"}))
    assert small.for_mini(converted, {}, FIRST, "apple.png")
    found = {key: node["inputs"] for key, node in converted.prompt.items()}
    assert found["1"] == {"prior": "mini_c.safetensors", "preset": "files below", "missing_files": "never"}
    assert found["2"] == {"width": 256, "height": 256, "compression": 21.33}
    assert found["3"] == {"width": 128, "height": 160}
    assert found["4"]["image"] == "apple.png" and found["5"]["steps"] == 20 and found["6"]["text"] == FIRST.prompt
    assert [found[key]["cfg"] for key in "578"] == [small.MINI_PRIOR_CFG, 1.1, ["9", 0]], "Stage C's official one"


def test_files_of_the_pack_never_stand_in_for_those_of_another_model():
    """The nearest name may be Mini's, whose parts fit each other alone."""
    converted = Converted(
        {
            "1": {
                "class_type": "L",
                "_meta": {"title": "L"},
                "inputs": {"text_encoder": "stable_cascade_text_encoder.safetensors"},
            }
        }
    )
    options = ["cascade_mini_text.safetensors", "clip_g.safetensors"]
    fit_files(converted, {"L": {"input": {"required": {"text_encoder": [options]}}}})
    assert converted.prompt["1"]["inputs"]["text_encoder"] == "clip_g.safetensors"
