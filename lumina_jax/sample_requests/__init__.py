"""Requests for samples of a run, as `lumina sample` and the page of `lumina demo` make them."""
