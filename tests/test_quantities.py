"""The README's table of what is exact, approximate and refused says what the code does."""

import quantities


def test_the_table_of_the_readme_is_what_the_code_does():
    told = quantities.README.read_text().split(quantities.START)[1].split(quantities.END)[0]
    assert told == quantities.table(), "run: python tests/quantities.py"
