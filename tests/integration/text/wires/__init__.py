"""One model behind three wire formats, which does what it is asked in each one's own words."""
