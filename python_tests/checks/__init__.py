"""Every kind of check, as functions over (target, case, ...): the generated suite calls them, and so does the test
that plants bugs and demands red."""
