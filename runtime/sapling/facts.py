"""General knowledge that sapling learns by heart, written down for it.

Knows: small tables of countries, elements, animals, planets, books and opposites.
Must not know: how a question is phrased or how a sample is rendered."""

from __future__ import annotations

COUNTRIES = """France|Paris|Europe|French|euro
Germany|Berlin|Europe|German|euro
Italy|Rome|Europe|Italian|euro
Spain|Madrid|Europe|Spanish|euro
Portugal|Lisbon|Europe|Portuguese|euro
Greece|Athens|Europe|Greek|euro
Ireland|Dublin|Europe|English|euro
Austria|Vienna|Europe|German|euro
Belgium|Brussels|Europe|Dutch|euro
Finland|Helsinki|Europe|Finnish|euro
Estonia|Tallinn|Europe|Estonian|euro
Latvia|Riga|Europe|Latvian|euro
Lithuania|Vilnius|Europe|Lithuanian|euro
Slovakia|Bratislava|Europe|Slovak|euro
Slovenia|Ljubljana|Europe|Slovene|euro
Croatia|Zagreb|Europe|Croatian|euro
Malta|Valletta|Europe|Maltese|euro
Netherlands|Amsterdam|Europe|Dutch|euro
Sweden|Stockholm|Europe|Swedish|krona
Norway|Oslo|Europe|Norwegian|krone
Denmark|Copenhagen|Europe|Danish|krone
Iceland|Reykjavik|Europe|Icelandic|krona
Poland|Warsaw|Europe|Polish|zloty
Hungary|Budapest|Europe|Hungarian|forint
Romania|Bucharest|Europe|Romanian|leu
Bulgaria|Sofia|Europe|Bulgarian|lev
Serbia|Belgrade|Europe|Serbian|dinar
Albania|Tirana|Europe|Albanian|lek
Ukraine|Kyiv|Europe|Ukrainian|hryvnia
Russia|Moscow|Europe|Russian|ruble
Switzerland|Bern|Europe|German|franc
England|London|Europe|English|pound
Turkey|Ankara|Asia|Turkish|lira
Georgia|Tbilisi|Asia|Georgian|lari
Armenia|Yerevan|Asia|Armenian|dram
Israel|Jerusalem|Asia|Hebrew|shekel
Iran|Tehran|Asia|Persian|rial
Iraq|Baghdad|Asia|Arabic|dinar
Jordan|Amman|Asia|Arabic|dinar
Lebanon|Beirut|Asia|Arabic|pound
Syria|Damascus|Asia|Arabic|pound
Kuwait|Kuwait City|Asia|Arabic|dinar
Qatar|Doha|Asia|Arabic|riyal
Oman|Muscat|Asia|Arabic|rial
Yemen|Sanaa|Asia|Arabic|rial
India|New Delhi|Asia|Hindi|rupee
Pakistan|Islamabad|Asia|Urdu|rupee
Nepal|Kathmandu|Asia|Nepali|rupee
Bangladesh|Dhaka|Asia|Bengali|taka
Bhutan|Thimphu|Asia|Dzongkha|ngultrum
Afghanistan|Kabul|Asia|Pashto|afghani
Uzbekistan|Tashkent|Asia|Uzbek|som
Kazakhstan|Astana|Asia|Kazakh|tenge
Mongolia|Ulaanbaatar|Asia|Mongolian|tugrik
China|Beijing|Asia|Chinese|yuan
Japan|Tokyo|Asia|Japanese|yen
South Korea|Seoul|Asia|Korean|won
Thailand|Bangkok|Asia|Thai|baht
Vietnam|Hanoi|Asia|Vietnamese|dong
Laos|Vientiane|Asia|Lao|kip
Cambodia|Phnom Penh|Asia|Khmer|riel
Malaysia|Kuala Lumpur|Asia|Malay|ringgit
Indonesia|Jakarta|Asia|Indonesian|rupiah
Philippines|Manila|Asia|Filipino|peso
Egypt|Cairo|Africa|Arabic|pound
Libya|Tripoli|Africa|Arabic|dinar
Tunisia|Tunis|Africa|Arabic|dinar
Algeria|Algiers|Africa|Arabic|dinar
Morocco|Rabat|Africa|Arabic|dirham
Sudan|Khartoum|Africa|Arabic|pound
Ethiopia|Addis Ababa|Africa|Amharic|birr
Kenya|Nairobi|Africa|Swahili|shilling
Tanzania|Dodoma|Africa|Swahili|shilling
Uganda|Kampala|Africa|English|shilling
Ghana|Accra|Africa|English|cedi
Nigeria|Abuja|Africa|English|naira
Senegal|Dakar|Africa|French|franc
Mali|Bamako|Africa|French|franc
Cameroon|Yaounde|Africa|French|franc
Rwanda|Kigali|Africa|Kinyarwanda|franc
Somalia|Mogadishu|Africa|Somali|shilling
Angola|Luanda|Africa|Portuguese|kwanza
Mozambique|Maputo|Africa|Portuguese|metical
Zambia|Lusaka|Africa|English|kwacha
Madagascar|Antananarivo|Africa|Malagasy|ariary
Canada|Ottawa|North America|English|dollar
Mexico|Mexico City|North America|Spanish|peso
Cuba|Havana|North America|Spanish|peso
Jamaica|Kingston|North America|English|dollar
Guatemala|Guatemala City|North America|Spanish|quetzal
Costa Rica|San Jose|North America|Spanish|colon
Panama|Panama City|North America|Spanish|balboa
Brazil|Brasilia|South America|Portuguese|real
Argentina|Buenos Aires|South America|Spanish|peso
Chile|Santiago|South America|Spanish|peso
Peru|Lima|South America|Spanish|sol
Colombia|Bogota|South America|Spanish|peso
Ecuador|Quito|South America|Spanish|dollar
Uruguay|Montevideo|South America|Spanish|peso
Paraguay|Asuncion|South America|Spanish|guarani
Venezuela|Caracas|South America|Spanish|bolivar
Australia|Canberra|Oceania|English|dollar
New Zealand|Wellington|Oceania|English|dollar
Fiji|Suva|Oceania|English|dollar"""

ELEMENTS = """hydrogen|H|1
helium|He|2
lithium|Li|3
beryllium|Be|4
boron|B|5
carbon|C|6
nitrogen|N|7
oxygen|O|8
fluorine|F|9
neon|Ne|10
sodium|Na|11
magnesium|Mg|12
aluminium|Al|13
silicon|Si|14
phosphorus|P|15
sulfur|S|16
chlorine|Cl|17
argon|Ar|18
potassium|K|19
calcium|Ca|20
scandium|Sc|21
titanium|Ti|22
vanadium|V|23
chromium|Cr|24
manganese|Mn|25
iron|Fe|26
cobalt|Co|27
nickel|Ni|28
copper|Cu|29
zinc|Zn|30
gallium|Ga|31
germanium|Ge|32
arsenic|As|33
selenium|Se|34
bromine|Br|35
krypton|Kr|36
rubidium|Rb|37
strontium|Sr|38
zirconium|Zr|40
niobium|Nb|41
molybdenum|Mo|42
silver|Ag|47
cadmium|Cd|48
tin|Sn|50
antimony|Sb|51
iodine|I|53
xenon|Xe|54
cesium|Cs|55
barium|Ba|56
tungsten|W|74
osmium|Os|76
iridium|Ir|77
platinum|Pt|78
gold|Au|79
mercury|Hg|80
lead|Pb|82
bismuth|Bi|83
radon|Rn|86
radium|Ra|88
uranium|U|92"""

ANIMALS = """dog|mammal|4|house|omnivore
cat|mammal|4|house|carnivore
horse|mammal|4|stable|herbivore
cow|mammal|4|pasture|herbivore
pig|mammal|4|farm|omnivore
sheep|mammal|4|pasture|herbivore
goat|mammal|4|mountains|herbivore
rabbit|mammal|4|burrow|herbivore
mouse|mammal|4|field|omnivore
lion|mammal|4|savanna|carnivore
tiger|mammal|4|jungle|carnivore
leopard|mammal|4|savanna|carnivore
elephant|mammal|4|savanna|herbivore
giraffe|mammal|4|savanna|herbivore
zebra|mammal|4|savanna|herbivore
hippo|mammal|4|river|herbivore
camel|mammal|4|desert|herbivore
bear|mammal|4|forest|omnivore
wolf|mammal|4|forest|carnivore
fox|mammal|4|forest|omnivore
deer|mammal|4|forest|herbivore
squirrel|mammal|4|forest|omnivore
hedgehog|mammal|4|garden|omnivore
monkey|mammal|2|jungle|omnivore
gorilla|mammal|2|jungle|herbivore
kangaroo|mammal|2|grassland|herbivore
koala|mammal|4|forest|herbivore
panda|mammal|4|mountains|herbivore
bat|mammal|2|cave|omnivore
whale|mammal|0|ocean|carnivore
dolphin|mammal|0|ocean|carnivore
seal|mammal|0|coast|carnivore
eagle|bird|2|mountains|carnivore
owl|bird|2|forest|carnivore
chicken|bird|2|farm|omnivore
duck|bird|2|lake|omnivore
swan|bird|2|lake|herbivore
penguin|bird|2|coast|carnivore
ostrich|bird|2|savanna|omnivore
parrot|bird|2|jungle|herbivore
raven|bird|2|forest|omnivore
snake|reptile|0|desert|carnivore
lizard|reptile|4|desert|carnivore
crocodile|reptile|4|river|carnivore
turtle|reptile|4|coast|omnivore
tortoise|reptile|4|desert|herbivore
frog|amphibian|4|pond|carnivore
toad|amphibian|4|garden|carnivore
newt|amphibian|4|pond|carnivore
shark|fish|0|ocean|carnivore
salmon|fish|0|river|carnivore
trout|fish|0|river|carnivore
tuna|fish|0|ocean|carnivore
carp|fish|0|lake|omnivore
bee|insect|6|hive|herbivore
ant|insect|6|nest|omnivore
butterfly|insect|6|meadow|herbivore
beetle|insect|6|forest|omnivore
mosquito|insect|6|swamp|carnivore
spider|arachnid|8|web|carnivore
scorpion|arachnid|8|desert|carnivore"""

PLANETS = """Mercury|1|0|rocky planet
Venus|2|0|rocky planet
Earth|3|1|rocky planet
Mars|4|2|rocky planet
Jupiter|5|95|gas giant
Saturn|6|146|gas giant
Uranus|7|28|ice giant
Neptune|8|16|ice giant"""

BOOKS = """Hamlet|William Shakespeare|1603
Don Quixote|Miguel de Cervantes|1605
Faust|Johann Wolfgang von Goethe|1808
Emma|Jane Austen|1815
Frankenstein|Mary Shelley|1818
Oliver Twist|Charles Dickens|1838
Jane Eyre|Charlotte Bronte|1847
Moby Dick|Herman Melville|1851
Walden|Henry David Thoreau|1854
Les Miserables|Victor Hugo|1862
War and Peace|Leo Tolstoy|1869
Middlemarch|George Eliot|1871
Anna Karenina|Leo Tolstoy|1878
Treasure Island|Robert Louis Stevenson|1883
Dracula|Bram Stoker|1897
The Time Machine|H. G. Wells|1895
The Jungle Book|Rudyard Kipling|1894
Ulysses|James Joyce|1922
The Trial|Franz Kafka|1925
Brave New World|Aldous Huxley|1932
The Hobbit|J. R. R. Tolkien|1937
Animal Farm|George Orwell|1945"""

OPPOSITES = """hot|cold
big|small
tall|short
fast|slow
happy|sad
light|dark
early|late
old|new
rich|poor
full|empty
hard|soft
wet|dry
loud|quiet
strong|weak
thick|thin
wide|narrow
high|low
deep|shallow
clean|dirty
open|closed
true|false
good|bad
right|wrong
near|far
first|last
heavy|light
rough|smooth
sharp|blunt
brave|cowardly
noisy|silent
alive|dead
awake|asleep
beautiful|ugly
cheap|expensive
easy|difficult
ancient|modern
polite|rude
safe|dangerous
sweet|bitter
tight|loose
up|down
young|old
day|night
summer|winter
north|south
east|west
begin|end
push|pull
buy|sell
give|take
love|hate
win|lose
arrive|leave
remember|forget
laugh|cry
float|sink"""

# kind -> (attribute -> (words for it, column)); the first word is the one used in answers.
ATTRIBUTES: dict[str, dict[str, tuple[tuple[str, ...], int]]] = {
    "country": {
        "capital": (("capital", "capital city"), 1),
        "continent": (("continent",), 2),
        "language": (("language", "main language", "official language"), 3),
        "currency": (("currency", "money"), 4),
    },
    "element": {
        "symbol": (("symbol", "chemical symbol"), 1),
        "atomic number": (("atomic number",), 2),
    },
    "animal": {
        "class": (("class", "animal class"), 1),
        "number of legs": (("number of legs", "leg count"), 2),
        "habitat": (("habitat", "home"), 3),
        "diet": (("diet", "diet type"), 4),
    },
    "planet": {
        "position from the Sun": (("position from the Sun", "position"), 1),
        "number of moons": (("number of moons", "moon count"), 2),
        "type": (("type", "kind"), 3),
    },
    "book": {"author": (("author", "writer"), 1), "year": (("year", "publication year"), 2)},
    "word": {"opposite": (("opposite", "antonym"), 1)},
}


def rows(table: str) -> list[list[str]]:
    """The cells of one of the tables above."""
    return [line.split("|") for line in table.splitlines()]


TABLES: dict[str, list[list[str]]] = {
    "country": rows(COUNTRIES),
    "element": rows(ELEMENTS),
    "animal": rows(ANIMALS),
    "planet": rows(PLANETS),
    "book": rows(BOOKS),
    "word": rows(OPPOSITES),
}
