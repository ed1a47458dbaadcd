"""Training for users: LoRAs, words, whole stages and ControlNets from a folder, in a graph or from the command line.

``settings`` and ``dataset`` say what to learn from, ``cache`` does once what never changes, ``frozen_net`` and
``lora_layers`` build the network that learns, ``objectives`` and ``losses`` say what is to be predicted, ``trainer``
and ``optimiser`` make the steps, ``checkpoint`` keeps them, ``run`` puts it all together and ``export`` writes the
file. Nothing here knows the host; picture files are read and drawn in ``pictures_io`` alone.
"""
