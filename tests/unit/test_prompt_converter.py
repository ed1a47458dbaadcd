"""Workflow files become the prompts that the frontend would send."""

from __future__ import annotations

import copy

import pytest

from cascade_studio.commands.messages import Stop
from cascade_studio.commands.workflow.api_prompt import convert
from cascade_studio.commands.workflow.widgets import plain_prompt

CONTROL = {"control_after_generate": True}
INFO = {
    "Load": {"input": {"required": {"name": [["a.safetensors", "b.safetensors"]]}}, "display_name": "Load a model"},
    "Lora": {"input": {"required": {"strength": ["FLOAT", {"default": 1.0}], "model": ["MODEL"], "clip": ["CLIP"]}}},
    "Text": {
        "input": {"required": {"text": ["STRING", {"multiline": True, "dynamicPrompts": True}], "clip": ["CLIP"]}}
    },
    "Sample": {
        "input": {
            "required": {
                "model": ["MODEL"],
                "seed": ["INT", CONTROL],
                "steps": ["INT", {"default": 20}],
                "cfg": ["FLOAT", {"default": 4.0}],
                "sampler": ["COMBO", {"options": ["x", "y"], "control_after_generate": True}],
            },
            "optional": {"noise": ["FLOAT", {"default": 1.0}], "latent": ["LATENT"]},
            "hidden": {"prompt": ["PROMPT"]},
        },
        "input_order": {"required": ["model", "seed", "steps", "cfg", "sampler"], "optional": ["noise", "latent"]},
    },
    "Plain": {
        "input": {
            "required": {
                "noise_seed": ["INT", {}],
                "count": ["INT", {"default": 3}],
                "loose": ["INT", {"control_after_generate": False}],
            }
        }
    },
    "Save": {"input": {"required": {"images": ["IMAGE"], "prefix": ["STRING", {"default": "ComfyUI"}]}}},
    "Image": {
        "input": {
            "required": {"image": [["i.png"], {"image_upload": True}], "upload": ["IMAGEUPLOAD", {}]},
            "optional": {"after": ["INT", {}]},
        }
    },
    "Forced": {"input": {"required": {"a": ["INT", {"forceInput": True}], "b": ["INT", {}]}}},
    "Dynamic": {
        "input": {
            "required": {
                "mode": [
                    "COMFY_DYNAMICCOMBO_V3",
                    {
                        "options": [
                            {"key": "off", "inputs": {"required": {}}},
                            {
                                "key": "on",
                                "inputs": {
                                    "required": {
                                        "s": ["FLOAT", {"default": 1.5}],
                                        "image": ["IMAGE"],
                                        "deep": [
                                            "COMFY_DYNAMICCOMBO_V3",
                                            {"options": [{"key": "p", "inputs": {"required": {"q": ["INT", {}]}}}]},
                                        ],
                                    }
                                },
                            },
                        ]
                    },
                ],
                "tail": ["INT", {}],
            }
        }
    },
    "Grow": {
        "input": {
            "required": {
                "images": [
                    "COMFY_AUTOGROW_V3",
                    {"template": {"input": {"required": {"image": ["IMAGE"]}}, "prefix": "image", "min": 1}},
                ],
                "scale": ["FLOAT", {}],
            }
        }
    },
    "Listed": {"input": {"required": {"many": ["COMBO", {"options": ["a", "b"], "multiselect": True}]}}},
}


def node(number, kind, values=None, inputs=(), outputs=(), **rest):
    """One node of a workflow file; inputs are (name, type, link[, widget name])."""
    sockets = [
        {
            "name": entry[0],
            "type": entry[1],
            "link": entry[2],
            **({"widget": {"name": entry[3]}} if len(entry) > 3 else {}),
        }
        for entry in inputs
    ]
    return {
        "id": number,
        "type": kind,
        "mode": 0,
        "inputs": sockets,
        "outputs": [{"name": kind, "type": kind, "links": []} for kind in outputs],
        "widgets_values": values if values is not None else [],
        **rest,
    }


def link(number, origin, slot, target, target_slot, kind="*"):
    return {
        "id": number,
        "origin_id": origin,
        "origin_slot": slot,
        "target_id": target,
        "target_slot": target_slot,
        "type": kind,
    }


def as_lists(links):
    return [
        [entry[key] for key in ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")]
        for entry in links
    ]


def flow(nodes, links=(), subgraphs=()):
    return {"version": 0.4, "nodes": nodes, "links": as_lists(links), "definitions": {"subgraphs": list(subgraphs)}}


def inputs_of(workflow, number):
    return convert(workflow, INFO).prompt[str(number)]["inputs"]


def test_values_are_taken_by_position_around_the_seed_controls():
    values = [42, "randomize", 12, 3.5, "y", "fixed", "", 0.25]
    found = inputs_of(flow([node(1, "Sample", values)]), 1)
    assert found == {"seed": 42, "steps": 12, "cfg": 3.5, "sampler": "y", "noise": 0.25}


def test_seed_names_have_a_control_unless_the_node_says_no():
    assert inputs_of(flow([node(1, "Plain", [7, "fixed", 5, 9])]), 1) == {"noise_seed": 7, "count": 5, "loose": 9}


def test_missing_values_are_defaults():
    assert inputs_of(flow([node(1, "Sample", [1])]), 1) == {
        "seed": 1,
        "steps": 20,
        "cfg": 4.0,
        "sampler": "x",
        "noise": 1.0,
    }


def test_values_by_name():
    assert inputs_of(flow([node(1, "Sample", {"steps": 4, "seed": 2})]), 1)["steps"] == 4


@pytest.mark.parametrize("dicts", (False, True))
def test_links_in_both_file_formats(dicts):
    links = [link(5, 1, 0, 2, 0, "MODEL")]
    workflow = flow([node(1, "Load", ["b.safetensors"]), node(2, "Sample", [3], [("model", "MODEL", 5)])], links)
    if dicts:
        workflow |= {"version": 1, "links": links}
    prompt = convert(workflow, INFO).prompt
    assert prompt["2"]["inputs"]["model"] == ["1", 0]
    assert prompt["1"] == {
        "class_type": "Load",
        "inputs": {"name": "b.safetensors"},
        "_meta": {"title": "Load a model"},
    }


def test_a_connected_widget_sends_the_link_and_keeps_the_others_in_place():
    workflow = flow(
        [
            node(1, "Plain"),
            node(2, "Sample", [9, "fixed", 30, 2.0, "y"], [("model", "MODEL", None), ("steps", "INT", 4, "steps")]),
        ],
        [link(4, 1, 1, 2, 1, "INT")],
    )
    found = inputs_of(workflow, 2)
    assert found["steps"] == ["1", 1] and found["cfg"] == 2.0 and found["sampler"] == "y"


def test_forced_sockets_have_no_value_and_old_files_keep_a_dummy():
    assert inputs_of(flow([node(1, "Forced", [8])]), 1) == {"b": 8}
    assert inputs_of(flow([node(1, "Forced", [99, 8])]), 1) == {"b": 8}


def test_upload_buttons_take_a_place_but_are_not_sent():
    assert inputs_of(flow([node(1, "Image", ["i.png", "image", 6])]), 1) == {"image": "i.png", "after": 6}


def test_lists_are_wrapped():
    assert inputs_of(flow([node(1, "Listed", [["a", "b"]])]), 1) == {"many": {"__value__": ["a", "b"]}}


@pytest.mark.parametrize(
    "values, expected",
    (
        (["off", 4], {"mode": "off", "tail": 4}),
        (["on", 0.5, "p", 7, 4], {"mode": "on", "mode.s": 0.5, "mode.deep": "p", "mode.deep.q": 7, "tail": 4}),
    ),
)
def test_dynamic_combos_bring_their_inputs(values, expected):
    assert inputs_of(flow([node(1, "Dynamic", values)]), 1) == expected


def test_dynamic_sockets_and_autogrow_are_links():
    nodes = [
        node(1, "Save"),
        node(2, "Dynamic", ["on", 1.0, "p", 1, 2], [("mode.image", "IMAGE", 1)]),
        node(3, "Grow", [2.0], [("images.image0", "IMAGE", 2), ("images.image1", "IMAGE", None)]),
    ]
    workflow = flow(nodes, [link(1, 1, 0, 2, 0), link(2, 1, 0, 3, 0)])
    assert inputs_of(workflow, 2)["mode.image"] == ["1", 0]
    assert inputs_of(workflow, 3) == {"images.image0": ["1", 0], "scale": 2.0}


def chain(mode):
    """Load → Lora (mode) → Sample and Text."""
    nodes = [
        node(1, "Load", outputs=("MODEL", "CLIP")),
        node(2, "Lora", [0.5], [("model", "MODEL", 1), ("clip", "CLIP", 2)], ("MODEL", "CLIP"), mode=mode),
        node(3, "Sample", [1], [("model", "MODEL", 3)]),
        node(4, "Text", ["hi"], [("clip", "CLIP", 4)]),
    ]
    return flow(
        nodes,
        [
            link(1, 1, 0, 2, 0, "MODEL"),
            link(2, 1, 1, 2, 1, "CLIP"),
            link(3, 2, 0, 3, 0, "MODEL"),
            link(4, 2, 1, 4, 0, "CLIP"),
        ],
    )


def test_muted_nodes_and_the_links_from_them_are_left_out():
    prompt = convert(chain(2), INFO).prompt
    assert "2" not in prompt and "model" not in prompt["3"]["inputs"] and "clip" not in prompt["4"]["inputs"]


def test_bypassed_nodes_hand_on_the_input_of_the_same_type():
    prompt = convert(chain(4), INFO).prompt
    assert "2" not in prompt
    assert prompt["3"]["inputs"]["model"] == ["1", 0] and prompt["4"]["inputs"]["clip"] == ["1", 1]


def test_a_bypass_without_a_matching_input_gives_nothing():
    workflow = flow(
        [
            node(1, "Load", outputs=("MODEL",)),
            node(2, "Sample", [1], [("model", "MODEL", 1)], ("LATENT",), mode=4),
            node(3, "Save", ["p"], [("images", "IMAGE", 2)]),
        ],
        [link(1, 1, 0, 2, 0, "MODEL"), link(2, 2, 0, 3, 0, "LATENT")],
    )
    assert inputs_of(workflow, 3) == {"prefix": "p"}


def test_reroutes_primitives_and_notes_are_the_frontends_own():
    nodes = [
        node(1, "Load", outputs=("MODEL",)),
        node(2, "Reroute", None, [("", "*", 1)], ("MODEL",)),
        node(3, "Reroute", None, [("", "*", 2)], ("MODEL",)),
        node(4, "PrimitiveNode", [77, "fixed"], (), ("INT",)),
        node(5, "Sample", [1], [("model", "MODEL", 3), ("seed", "INT", 4, "seed")]),
        node(6, "Note", ["text"]),
        node(7, "MarkdownNote", ["text"]),
    ]
    workflow = flow(nodes, [link(1, 1, 0, 2, 0), link(2, 2, 0, 3, 0), link(3, 3, 0, 5, 0), link(4, 4, 0, 5, 1)])
    prompt = convert(workflow, INFO).prompt
    assert set(prompt) == {"1", "5"}
    assert prompt["5"]["inputs"]["model"] == ["1", 0] and prompt["5"]["inputs"]["seed"] == 77


def subgraph(name, slots, outputs, nodes, links):
    return {
        "id": name,
        "name": name,
        "inputs": [{"id": slot, "name": slot, "type": kind} for slot, kind in slots],
        "outputs": [{"id": slot, "name": slot, "type": kind} for slot, kind in outputs],
        "inputNode": {"id": -10},
        "outputNode": {"id": -20},
        "nodes": nodes,
        "links": links,
    }


SAMPLING = subgraph(
    "sampling",
    [("model", "MODEL"), ("steps", "INT")],
    [("out", "LATENT")],
    [node(3, "Sample", [5, "fixed", 6, 7.0, "y"], [("model", "MODEL", 1), ("steps", "INT", 2, "steps")], ("LATENT",))],
    [link(1, -10, 0, 3, 0, "MODEL"), link(2, -10, 1, 3, 1, "INT"), link(3, 3, 0, -20, 0, "LATENT")],
)


def nest(**rest):
    """Load → instance 12 of ``sampling`` → Grow."""
    nodes = [
        node(1, "Load", outputs=("MODEL",)),
        node(12, "sampling", rest.pop("values", None), [("model", "MODEL", 1)], ("LATENT",), **rest),
        node(2, "Grow", [1.0], [("images.image0", "LATENT", 2)]),
    ]
    return flow(nodes, [link(1, 1, 0, 12, 0, "MODEL"), link(2, 12, 0, 2, 0, "LATENT")], [copy.deepcopy(SAMPLING)])


@pytest.mark.parametrize(
    "rest, steps, seed",
    (
        ({}, 6, 5),
        ({"values": [11]}, 11, 5),
        ({"values": [33], "properties": {"proxyWidgets": [["3", "seed"]]}}, 6, 33),
        ({"values": [33, 44], "properties": {"proxyWidgets": '[["3", "seed"], ["-1", "steps"]]'}}, 44, 33),
    ),
)
def test_subgraphs_become_their_nodes_with_the_instances_values(rest, steps, seed):
    prompt = convert(nest(**rest), INFO).prompt
    assert set(prompt) == {"1", "12:3", "2"}
    assert prompt["12:3"]["inputs"] == {
        "seed": seed,
        "steps": steps,
        "cfg": 7.0,
        "sampler": "y",
        "noise": 1.0,
        "model": ["1", 0],
    }
    assert prompt["2"]["inputs"]["images.image0"] == ["12:3", 0]


@pytest.mark.parametrize("mode", (2, 4))
def test_a_silent_subgraph_runs_nothing_inside(mode):
    prompt = convert(nest(mode=mode), INFO).prompt
    assert set(prompt) == {"1", "2"} and prompt["2"]["inputs"] == {"scale": 1.0}


def nested():
    outer = subgraph(
        "outer",
        [("m", "MODEL"), ("n", "INT")],
        [("o", "LATENT"), ("same", "MODEL")],
        [node(12, "sampling", [21], [("model", "MODEL", 1), ("steps", "INT", 2, "steps")], ("LATENT",))],
        [link(1, -10, 0, 12, 0), link(2, -10, 1, 12, 1), link(3, 12, 0, -20, 0), link(4, -10, 0, -20, 1)],
    )
    nodes = [
        node(1, "Load", outputs=("MODEL",)),
        node(5, "outer", None, [("m", "MODEL", 1)], ("LATENT", "MODEL")),
        node(6, "outer", [31], [("m", "MODEL", 2)], ("LATENT", "MODEL")),
        node(7, "Sample", [1], [("model", "MODEL", 3), ("latent", "LATENT", 4)]),
    ]
    return flow(
        nodes,
        [link(1, 1, 0, 5, 0), link(2, 5, 1, 6, 0), link(3, 6, 1, 7, 0), link(4, 6, 0, 7, 1)],
        [outer, copy.deepcopy(SAMPLING)],
    )


def test_nested_subgraphs_and_two_instances_of_one():
    prompt = convert(nested(), INFO).prompt
    assert set(prompt) == {"1", "5:12:3", "6:12:3", "7"}
    assert [prompt[name]["inputs"]["steps"] for name in ("5:12:3", "6:12:3")] == [21, 31]
    assert prompt["6:12:3"]["inputs"]["model"] == prompt["7"]["inputs"]["model"] == ["1", 0]
    assert prompt["7"]["inputs"]["latent"] == ["6:12:3", 0]


def test_a_value_can_be_set_where_it_came_from():
    workflow = nested()
    converted = convert(workflow, INFO)
    converted.set("6:12:3", "steps", 99)
    again = convert(workflow, INFO).prompt
    assert converted.prompt["6:12:3"]["inputs"]["steps"] == again["6:12:3"]["inputs"]["steps"] == 99
    assert again["5:12:3"]["inputs"]["steps"] == 21


def test_the_workflow_is_not_changed():
    workflow = nested()
    before = copy.deepcopy(workflow)
    convert(workflow, INFO)
    assert workflow == before


def test_a_prompt_passes_as_it_is():
    prompt = {"1": {"class_type": "Load", "inputs": {"name": "a.safetensors"}}}
    assert convert(prompt, INFO).prompt == prompt


@pytest.mark.parametrize(
    "text, plain",
    (("a {red|{dark|light} blue|} cat // note", "a red cat "), (r"\{kept\} /* gone */x", "{kept} x"), ("{|b}c", "c")),
)
def test_dynamic_prompts_are_resolved_to_their_first_choice(text, plain):
    assert plain_prompt(text) == plain
    assert inputs_of(flow([node(1, "Text", [text])]), 1)["text"] == plain


def test_circles_unknown_nodes_and_broken_links_are_sentences():
    circle = [
        node(1, "Reroute", None, [("", "*", 2)], ("*",)),
        node(2, "Reroute", None, [("", "*", 1)], ("*",)),
        node(3, "Save", None, [("images", "IMAGE", 3)]),
    ]
    with pytest.raises(Stop, match="circle"):
        convert(flow(circle, [link(1, 1, 0, 2, 0), link(2, 2, 0, 1, 0), link(3, 2, 0, 3, 0)]), INFO)
    with pytest.raises(Stop, match="does not have: Foreign"):
        convert(flow([node(1, "Foreign")]), INFO)
    assert convert(flow([node(1, "Foreign", mode=2)]), INFO).prompt == {}
    with pytest.raises(Stop, match="link 9"):
        convert(flow([node(1, "Save", None, [("images", "IMAGE", 9)])]), INFO)
    with pytest.raises(Stop, match="no ComfyUI workflow"):
        convert({"hello": 1}, INFO)
