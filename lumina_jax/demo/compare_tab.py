"""The tab that draws the same with two runs or checkpoints, side by side."""

from typing import Any

import gradio as gr

from lumina_jax.demo.drawn import HIDDEN, Asking, Page, TabParts, Updates, draws
from lumina_jax.demo.field_values import whole_of
from lumina_jax.demo.form import Form


def compare_tab(page: Page) -> TabParts:
    """Lay the tab out."""
    studio, other = page.studio, page.studio.runs[-1]
    with gr.Tab("Compare", elem_id="tab-compare", id="compare") as tab:
        with gr.Row():
            names = [one.name for one in studio.runs]
            run = gr.Dropdown(names, value=other.name, label="The other run", elem_id="other-run")
            step = gr.Dropdown(other.steps(), value=other.steps()[-1], label="Its step", elem_id="other-step")
        button = gr.Button("Draw both", variant="primary", elem_id="draw-both")

    def asked(form: Form, name: str, step: Any) -> Asking:
        other = studio.run(name)
        modality = form.modality if form.modality in other.modalities else other.modalities[0]
        chosen = None if step is None else whole_of("step", step)
        second = form._replace(run=other.name, modality=modality, step=chosen)
        if (second.run, second.step) == (form.run, form.step):
            raise ValueError("both are the same; choose another run or another step")
        if studio.run_of(form).fields != studio.run_of(second).fields:
            raise ValueError("the two runs draw different kinds of samples; choose runs of one kind")
        return Asking([form, second], {})

    def steps_of(name: str) -> Any:
        steps = studio.run(name).steps()
        return gr.update(choices=steps, value=steps[0])

    def nothing(*_: Any) -> Updates:
        return {}

    run.input(steps_of, run, step, **HIDDEN)
    draws(page, [button.click], asked, [run, step])
    return TabParts(tab, lambda run: True, [], nothing, nothing)
