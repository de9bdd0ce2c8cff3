"""Triton's own compiler and launcher, for sm_90, over a driver that launches nothing (``driver.c``)."""
