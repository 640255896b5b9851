import pytest

from helpers.spectra_made import made_spectrum
from hrp.report.html import page
from hrp.report.run_page import run_page
from hrp.report.spectrum_views import spectrum_sections


def spectrum_page(spectra, title="Spectra"):
    return page(title, "", spectrum_sections(spectra))


def test_spectra_make_a_page_of_sections():
    text = spectrum_page({"a": made_spectrum(), "b": made_spectrum(1)}, title="Two of them")
    assert "<h1>Two of them</h1>" in text
    assert text.index("<h2>Spectrum a</h2>") < text.index("<h2>Spectrum b</h2>")
    assert text.count("<svg") == 2 + 4
    assert text.count("<summary>All 9 modules</summary>") == 2
    assert "preheat_rank 8" in text


def test_a_page_of_nothing_is_refused():
    with pytest.raises(ValueError, match="must have something to show"):
        run_page({})


def test_spectra_of_other_models_stand_beside_each_other_without_alignment():
    text = spectrum_page({"a": made_spectrum(), "b": made_spectrum(layers=2)})
    assert "Alignment with" not in text
    assert "Alignment with a" in spectrum_page({"a": made_spectrum(), "b": made_spectrum(1)})
