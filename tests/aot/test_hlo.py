"""Programs as text: how often loops run what, and what is hidden where."""

from pathlib import Path

import pytest

from lumina_jax.aot.hlo import HOST, read_hlo, shapes_in

RECORDED = Path(__file__).parent / "recorded"

NESTED = """
HloModule nested

%outer_condition (p.0: (s32[], f32[4])) -> pred[] {
  %p.0 = (s32[]{:T(128)}, f32[4]{0}) parameter(0)
  %i.0 = s32[]{:T(128)} get-tuple-element(%p.0), index=0
  %seven = s32[] constant(7)
  ROOT %less.0 = pred[] compare(%i.0, %seven), direction=LT
}

%inner_condition (p.1: (s32[], f32[4])) -> pred[] {
  %p.1 = (s32[], f32[4]{0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%p.1), index=0
  %eleven = s32[] constant(11)
  ROOT %less.1 = pred[] compare(%i.1, %eleven), direction=LT
}

%count_by_three (a: s32[], b: s32[]) -> s32[] {
  %a = s32[] parameter(0)
  %b = s32[] parameter(1)
  ROOT %sum = s32[] add(%a, %b)
}

%inner_body (p.2: (s32[], f32[4])) -> (s32[], f32[4]) {
  %p.2 = (s32[], f32[4]{0}) parameter(0)
  %i.2 = s32[] get-tuple-element(%p.2), index=0
  %three = s32[] constant(3)
  %next.2 = s32[] fusion(%i.2, %three), kind=kLoop, calls=%count_by_three
  %x.2 = f32[4]{0} get-tuple-element(%p.2), index=1
  %kernel = f32[4]{0} custom-call(%x.2), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"over": "several (lines)"
}}
  ROOT %out.2 = (s32[], f32[4]{0}) tuple(%next.2, %kernel)
}

%outer_body (p.3: (s32[], f32[4])) -> (s32[], f32[4]) {
  %p.3 = (s32[], f32[4]{0}) parameter(0)
  %i.3 = s32[] get-tuple-element(%p.3), index=0
  %one = s32[] constant(1)
  %next.3 = s32[] add(%i.3, %one)
  %x.3 = f32[4]{0} get-tuple-element(%p.3), index=1
  %two = s32[] constant(2)
  %start.3 = s32[] copy(%two)
  %in.3 = (s32[], f32[4]{0}) tuple(%start.3, %x.3)
  %inner = (s32[], f32[4]{0}) while(%in.3), condition=%inner_condition, body=%inner_body
  %y.3 = f32[4]{0} get-tuple-element(%inner), index=1
  ROOT %out.3 = (s32[], f32[4]{0}) tuple(%next.3, %y.3)
}

%small (s: f32[4]) -> f32[4] {
  ROOT %s = f32[4]{0} parameter(0)
}

%large (l: f32[4]) -> f32[4] {
  %l = f32[4]{0} parameter(0)
  %wide = f32[400]{0} broadcast(%l), dimensions={}
  ROOT %narrow = f32[4]{0} slice(%wide), slice={[0:4]}
}

ENTRY %main (x: f32[4], i: s32[], flag: pred[]) -> f32[4] {
  %x = f32[4]{0} parameter(0)
  %i = s32[] parameter(1)
  %flag = pred[] parameter(2)
  %zero = s32[] constant(0)
  %in.4 = (s32[], f32[4]{0}) tuple(%zero, %x)
  %outer = (s32[], f32[4]{0}) while(%in.4), condition=%outer_condition, body=%outer_body
  %y.4 = f32[4]{0} get-tuple-element(%outer), index=1
  %either = f32[4]{0} conditional(%flag, %y.4, %y.4), branch_computations={%small, %large}
  %in.5 = (s32[], f32[4]{0}) tuple(%i, %either)
  %open = (s32[], f32[4]{0}) while(%in.5), condition=%inner_condition, body=%inner_body
  ROOT %y.5 = f32[4]{0} get-tuple-element(%open), index=1
}
"""


def test_loops_run_from_their_start_by_their_step_and_multiply():
    """The outer runs 0, 1, .. 6; the inner 2, 5, 8; a third begins at a value that only the run knows."""
    module = read_hlo(NESTED)
    assert {loop.instruction.name: loop.trips for loop in module.loops()} == {"outer": 7, "inner": 3, "open": None}
    runs = module.runs()
    assert runs["outer_body"] == 7
    assert runs["inner_body"] == 7 * 3 + 1
    assert module.runs([10])["inner_body"] == 7 * 3 + 10


def test_of_loops_with_an_end_of_their_own_each_depth_has_its_assumed_trips():
    """An adaptive solver: steps, and within each the stages of a step."""
    unknown = NESTED.replace("tuple(%zero, %x)", "tuple(%i, %x)").replace("tuple(%start.3,", "tuple(%i.3,")
    module = read_hlo(unknown)
    assert {loop.trips for loop in module.loops()} == {None}
    runs = module.runs([10, 6])
    assert runs["outer_body"] == 10
    assert runs["inner_body"] == 10 * 6 + 10
    assert module.runs([10])["inner_body"] == 10 + 10


def test_a_loop_whose_end_the_compiler_found_counts_as_the_one_that_was_assumed():
    """The steps of a solver are known, its calls of the network are not."""
    module = read_hlo(NESTED.replace("tuple(%start.3,", "tuple(%i.3,"))
    assert {loop.instruction.name: loop.trips for loop in module.loops()} == {"outer": 7, "inner": None, "open": None}
    assert module.runs([7, 2])["inner_body"] == 7 * 2 + 7


def test_of_a_conditional_the_branch_that_makes_more_counts():
    runs = read_hlo(NESTED).runs()
    assert runs["large"] == 1
    assert "small" not in runs


def test_attributes_may_span_lines():
    body = read_hlo(NESTED).computations["inner_body"]
    assert list(body.instructions) == ["p.2", "i.2", "three", "next.2", "x.2", "kernel", "out.2"]
    assert body.root.operands == ("next.2", "kernel")


def test_the_loops_of_a_recorded_step_run_once_a_layer():
    for file in sorted(RECORDED.glob("gathered_*.hlo")):
        loops = read_hlo(file.read_text()).loops()
        assert [loop.trips for loop in loops] == [5, 5], file


def test_shapes_tell_bytes_and_memory():
    kept, small, offloaded = shapes_in("(bf16[4,8,128]{2,1,0:T(8,128)(2,1)S(1)}, pred[3]{0}, f32[2,0]{1,0:T(8)S(5)})")
    assert (kept.bytes, kept.space) == (4 * 8 * 128 * 2, 1)
    assert (small.bytes, small.space) == (3, 0)
    assert (offloaded.bytes, offloaded.space) == (0, HOST)
    assert shapes_in("s4[10]{0}")[0].bytes == 5


def test_text_that_is_no_program_is_refused():
    with pytest.raises(ValueError, match="no ENTRY computation"):
        read_hlo("not a program")
