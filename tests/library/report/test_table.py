import doctest

import hrp.report.table
from hrp.report.table import Table


def test_the_doctests_hold():
    assert doctest.testmod(hrp.report.table).failed == 0


def test_no_name_breaks_a_markdown_table():
    table = Table("caption", ("a|b", "c"), (("x\ny", "<script>*`"), ("[l](u)", "\\|")))
    lines = table.markdown().splitlines()
    assert lines[0] == r"| a\|b | c |"
    assert lines[2] == r"| x y | &lt;script&gt;\*\` |"
    assert lines[3] == r"| \[l\](u) | \\\| |"
    assert len(lines) == 6
