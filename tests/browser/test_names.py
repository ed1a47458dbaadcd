"""Names: in what is queued they are filled in, and an input of files takes one from another node."""

from __future__ import annotations


def test_file_names_are_filled_in_when_queued(page):
    """In what is sent alone: the workflow keeps the text as it was typed."""
    page.add("CascadeStudio_Canvas", (100, 100), width=1000)
    typed = "%date:yyyy%/%CascadeStudio_Canvas.width%_x"
    saving = [
        page.add(f"CascadeStudio_{kind}", (500, 100 + 300 * place), filename_prefix=typed)
        for place, kind in enumerate(("SaveImage", "SaveModel"))
    ]
    sent, year = page.prompt(), page.browser.run("return new Date().getFullYear()")
    kept = {str(node["id"]): node["widgets_values"] for node in page.graph()["nodes"]}
    for node in saving:
        assert sent[str(node)]["inputs"]["filename_prefix"] == f"{year}/1000_x"
        assert page.value(node, "filename_prefix") == typed and typed in kept[str(node)]


CONNECT = """
    const node = LiteGraph.createNode(arguments[0]); app.rootGraph.add(node);
    const found = {};
    for (const name of arguments[1]) {
      const slot = node.inputs.findIndex((input) => (input.widget?.name ?? input.name) === name);
      found[name] = ["PrimitiveInt", "PrimitiveString"].map((kind) => {
        const source = LiteGraph.createNode(kind); app.rootGraph.add(source);
        return Boolean(source.connect(0, node, slot));
      });
    }
    return found;"""


def test_a_name_from_another_node_fits_every_input_of_files(page, object_info):
    """Text is taken and numbers are not, as the server has it; and the wires are there after loading."""
    inputs = {}
    for kind, definition in object_info.items():
        every = {**definition["input"].get("required", {}), **definition["input"].get("optional", {})}
        names = [name for name, spec in every.items() if len(spec) > 1 and "file" in spec[1]]
        if names and kind.startswith("CascadeStudio_"):
            inputs[kind] = names
    assert len(inputs) >= 12 and ["lora"] in inputs.values() and ["controlnet"] in inputs.values()
    for kind, names in inputs.items():
        found = page.browser.run(CONNECT, kind, names)
        assert found == dict.fromkeys(names, [False, True]), kind
    links = "return app.rootGraph.links.size ?? Object.keys(app.rootGraph.links).length"
    before = page.browser.run(links)
    page.browser.run("await app.loadGraphData(app.rootGraph.serialize())")
    assert page.browser.run(links) == before == sum(map(len, inputs.values()))
