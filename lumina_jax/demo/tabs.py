"""The tabs of the page, in their order."""

from lumina_jax.demo.compare_tab import compare_tab
from lumina_jax.demo.draw_tab import draw_tab
from lumina_jax.demo.edit_tab import edit_tab
from lumina_jax.demo.regions_tab import regions_tab
from lumina_jax.demo.style_tab import style_tab

TABS = (draw_tab, edit_tab, regions_tab, style_tab, compare_tab)
