"""The tabs of the page, in their order."""

from lumina_jax.demo.draw_tab import draw_tab

TABS = (draw_tab,)
