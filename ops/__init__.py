"""Tools of the maintainers, not in the wheel: `dist` builds it, `matrix` tests on other versions, `bench` measures."""
