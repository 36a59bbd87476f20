"""Speed as ratios, each measured in one interleaved run. Nothing here is asserted by the tests."""
