"""Training for users: LoRAs and ControlNets from a folder of pictures, in a graph or from the command line.

``settings`` and ``pictures`` say what to learn from, ``encode`` does once what never changes, ``frozen`` and
``adapters`` build the network that learns, ``objectives`` says what is to be predicted, ``trainer`` and ``store`` run
and keep it, ``result`` writes the file. Nothing here knows the host, reads a picture file or draws.
"""
