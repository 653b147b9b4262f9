"""How well purifiers denoise photographs, beside classical denoisers."""
