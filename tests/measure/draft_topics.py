"""What `draft_prompts` asks, and about what."""

_TOPICS = """
gardening; the stock market; solar panels; chess openings; sourdough bread;
black holes; the human heart; wind turbines; electric cars; beekeeping; coral reefs;
jazz music; the Renaissance; meditation; compound interest; volcanoes; tax returns;
dog training; time zones; blockchain; climate change; sleep; public speaking;
machine learning; the water cycle; soccer; ballet; photography; first aid;
the periodic table; dinosaurs; poetry; bicycles; job interviews; rainforests;
satellites; vaccines; bridges; coffee; tea; budgeting; remote teams; knitting;
astronomy; the French Revolution; magnets; recycling; marathons; yoga; podcasts;
libraries; museums; elections; democracy; inflation; glaciers; deserts; hurricanes;
lightning; earthquakes; cheese making; wine; robots; 3D printing; cryptography;
databases; operating systems; compilers; web browsers; email etiquette; negotiation;
leadership; motivation; friendship; parenting; homework; exams; universities;
scholarships; internships; startups; marketing; advertising; branding; logistics;
airports; trains; sailing; scuba diving; hiking; camping; rock climbing; skiing;
surfing; basketball; tennis; the Olympics; painting; sculpture; architecture;
film noir; science fiction; fairy tales; mythology; the Roman Empire; ancient Egypt;
the Silk Road; the Cold War; the Moon landing; Mars; comets; gravity; light;
sound waves; electricity; batteries; engines; steel; glass; plastics; paper; cotton;
silk; leather; perfume; soap; nutrition; vitamins; allergies; headaches; stress;
anxiety; memory; dreams; habits; procrastination; time management; minimalism;
interior design; plumbing; carpentry; house plants; lawn care; compost; bees;
butterflies; whales; sharks; penguins; elephants; wolves; cats; horses; parrots;
ants; spiders; trees; mushrooms; seaweed; rivers; lakes; mountains; islands; caves;
maps; compasses; clocks; calendars; money; banks; credit cards; insurance; mortgages;
retirement; charity; volunteering; law; contracts; patents; privacy; passwords;
hackers; social networks; smartphones; video games; board games; puzzles;
magic tricks; juggling; singing; guitars; pianos; drums; orchestras; opera; theater;
comedy; journalism; photosynthesis; DNA; cells; bacteria; viruses; antibiotics;
surgery; dentistry; eyesight; hearing; exercise; muscles; bones; skin; aging
"""
TOPICS = tuple(topic.strip() for topic in _TOPICS.split(";"))

PATTERNS: dict[str, tuple[str, ...]] = {
    "define": (
        "Define {} in one sentence.",
        "What exactly is meant by {}?",
        "Give a short definition and an example of {}.",
    ),
    "slogan": (
        "Write five slogans for a company that deals with {}.",
        "Think of names for a shop about {}.",
        "Write a tagline and a product description about {}.",
    ),
    "outline": (
        "Write an outline for a talk about {}.",
        "Draft a table of contents for a book on {}.",
        "Plan a one-week course on {}.",
    ),
    "opinion": (
        "What do people most often get wrong about {}?",
        "Why should anyone care about {}?",
        "Is it worth learning about {}? Argue your case.",
        "Write a persuasive paragraph about {}.",
    ),
    "quiz": (
        "Write a quiz with three multiple-choice questions about {}, with answers.",
        "Write five true or false statements about {}.",
        "Write three flashcards about {}.",
    ),
    "blog": (
        "Write the introduction of a blog post about {}.",
        "Write a newspaper article about {}.",
        "Write a social media post about {} with hashtags.",
        "Write a product review related to {}.",
    ),
    "history": (
        "Give a short history of {}.",
        "How has {} changed over the last hundred years?",
        "Name important people in the history of {} and what they did.",
    ),
    "role": (
        "You are an expert on {}. What would you tell a beginner?",
        "Imagine you are a teacher. Explain {} with an analogy.",
        "Pretend you are a pirate and tell me about {}.",
    ),
    "table": (
        "Make a table of important terms about {} and their meanings.",
        "Make a checklist for somebody new to {}.",
        "Write a glossary of {} with six entries.",
    ),
    "tips": (
        "Give me practical advice about {}.",
        "What tools do I need for {}, and what do they cost?",
        "What are common problems with {} and their solutions?",
    ),
    "creative": (
        "Write a limerick about {}.",
        "Write song lyrics about {}.",
        "Write a riddle whose answer has to do with {}.",
        "Tell me a joke about {}.",
        "Write a diary entry of someone who loves {}.",
        "Write a speech about {}.",
        "Describe a picture that shows {}.",
    ),
    "analysis": (
        "What causes {} to matter to the economy?",
        "Which ethical questions does {} raise?",
        "How would the world look without {}?",
        "Predict the future of {}.",
        "Describe the relationship between {} and science.",
    ),
    "plan": (
        "Make a 30-day plan to learn about {}.",
        "Write a weekly schedule for someone interested in {}.",
        "Write a to-do list for an event about {}.",
    ),
    "letter": (
        "Write a letter to the editor about {}.",
        "Write a postcard that mentions {}.",
        "Write a cover letter for a job that involves {}.",
        "Write a thank-you note to a teacher of {}.",
    ),
    "code": (
        "Write a Python class that models {}.",
        "Write a small Python program that prints facts about {}.",
        "Write a bash script for a project about {}.",
        "Write a CSV file with four rows of data about {}.",
    ),
    "facts": (
        "What are the most surprising facts about {}?",
        "Which numbers should one know about {}?",
        "Where in the world is {} most important, and why?",
    ),
}
