"""The pages, one file for each. They read through `console/read`, and draw with `console/parts`."""
