"""Early exits: heads after some layers, and when what they say is certain enough (calibration)."""
